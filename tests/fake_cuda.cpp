// Two CUDA devices that are the host's memory, for a torch that was built without CUDA: its dispatch key CUDA is free
// there. Every operation on such tensors runs as that of CPU tensors over the same memory. No streams, no graphs, no
// waiting: what only those show, these devices do not. To be loaded before torch, which asks for its hooks once.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <torch/library.h>
#include <cstdlib>
using at::Tensor;

namespace {

thread_local int current = 0;

struct Guard : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return c10::kCUDA; }
    c10::Device exchangeDevice(c10::Device d) const override {
        const c10::Device before = getDevice();
        current = d.index();
        return before;
    }
    c10::Device getDevice() const override { return c10::Device(c10::kCUDA, current); }
    void setDevice(c10::Device d) const override { current = d.index(); }
    void uncheckedSetDevice(c10::Device d) const noexcept override { current = d.index(); }
    c10::Stream getStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
    c10::Stream getDefaultStream(c10::Device d) const override { return c10::Stream(c10::Stream::DEFAULT, d); }
    c10::Stream exchangeStream(c10::Stream s) const override { return s; }
    c10::DeviceIndex deviceCount() const noexcept override { return 2; }
    void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
    bool queryStream(const c10::Stream&) const override { return true; }
    void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct CUDAHooks : at::CUDAHooksInterface {
    explicit CUDAHooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 2; }
    int getNumGPUs() const override { return 2; }
    c10::DeviceIndex current_device() const override { return current; }
    c10::DeviceIndex getCurrentDevice() const override { return current; }
    c10::Device getDeviceFromPtr(void*) const override { return c10::Device(c10::kCUDA, 0); }
    bool isPinnedPtr(const void*) const override { return false; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t n) override {
        void* const p = n ? c10::alloc_cpu(n) : nullptr;
        return {p, p, &c10::free_cpu, c10::Device(c10::kCUDA, current)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
    void copy_data(void* to, const void* from, std::size_t n) const override { default_copy_data(to, from, n); }
};
Allocator allocator;

void drop(void* s) { delete static_cast<c10::Storage*>(s); }

// A tensor over a storage, laid out as another one.
Tensor made(c10::Storage storage, const Tensor& like, c10::DispatchKey key) {
    auto x = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
    x.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
    x.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
    return x;
}
c10::Storage moved(const c10::Storage& s, c10::Device d) {
    void* p = s.mutable_data();
    return c10::Storage(c10::Storage::use_byte_size_t(), s.nbytes(), c10::DataPtr(p, new c10::Storage(s), &drop, d),
                        d.is_cuda() ? static_cast<c10::Allocator*>(&allocator) : c10::GetAllocator(c10::kCPU), true);
}

// Tensors of a call on the CPU ("here") and those on a device ("there") whose memory they have.
struct Pairs {
    std::vector<std::pair<Tensor, Tensor>> all;
    c10::Device device{c10::kCUDA, 0};
    Tensor here(const Tensor& t) {
        if (!t.defined() || !t.is_cuda()) return t;
        device = t.device();
        for (auto& [h, o] : all)
            if (o.is_same(t)) return h;
        for (auto& [h, o] : all)
            if (o.storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl()) {
                all.emplace_back(made(h.storage(), t, c10::DispatchKey::CPU), t);
                return all.back().first;
            }
        all.emplace_back(made(moved(t.storage(), c10::Device(c10::kCPU)), t, c10::DispatchKey::CPU), t);
        return all.back().first;
    }
    Tensor there(const Tensor& t) {
        if (!t.defined() || t.layout() != at::kStrided) return t;
        for (auto& [h, o] : all)
            if (h.is_same(t)) {
                if (o.sizes() != h.sizes() || o.strides() != h.strides()) {  // resized
                    auto* impl = o.unsafeGetTensorImpl();
                    if (h.storage().nbytes() > o.storage().nbytes())
                        impl->set_storage_keep_dtype(moved(h.storage(), device));
                    impl->set_sizes_and_strides(h.sizes(), h.strides());
                }
                return o;
            }
        for (auto& [h, o] : all)
            if (h.storage().unsafeGetStorageImpl() == t.storage().unsafeGetStorageImpl())
                return made(o.storage(), t, c10::DispatchKey::CUDA);
        return made(moved(t.storage(), device), t, c10::DispatchKey::CUDA);
    }
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    Pairs pairs;
    const auto& schema = op.schema();
    const size_t n = schema.arguments().size(), first = stack->size() - n;
    for (size_t k = first; k < stack->size(); k++) {
        c10::IValue& v = (*stack)[k];
        if (v.isTensor()) {
            v = pairs.here(v.toTensor());
        } else if (v.isTensorList()) {
            c10::List<Tensor> list;
            for (Tensor t : v.toTensorList()) list.push_back(pairs.here(t));
            v = list;
        } else if (v.isOptionalTensorList()) {
            c10::List<std::optional<Tensor>> list;
            for (std::optional<Tensor> t : v.toOptionalTensorList())
                list.push_back(t ? std::optional<Tensor>(pairs.here(*t)) : t);
            v = list;
        } else if (v.isDevice() && v.toDevice().is_cuda()) {
            pairs.device = v.toDevice();
            v = c10::Device(c10::kCPU);
        }
    }
    {
        at::AutoDispatchBelowADInplaceOrView guard;
        op.callBoxed(stack);
    }
    for (size_t k = stack->size() - schema.returns().size(); k < stack->size(); k++) {
        c10::IValue& v = (*stack)[k];
        if (v.isTensor()) {
            v = pairs.there(v.toTensor());
        } else if (v.isTensorList()) {
            c10::List<Tensor> list;
            for (Tensor t : v.toTensorList()) list.push_back(pairs.there(t));
            v = list;
        }
    }
}
c10::Device device_in(std::optional<c10::Device> d) {
    return c10::Device(c10::kCUDA, d && d->has_index() ? d->index() : current);
}
Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                    std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    c10::DeviceGuard guard(device_in(device));
    return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                     c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                            std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
    c10::DeviceGuard guard(device_in(device));
    return at::detail::empty_strided_generic(size, stride, &allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                             c10::dtype_or_default(dtype));
}
Tensor& copy_(Tensor& self, const Tensor& source, bool) {
    Pairs pairs;
    at::AutoDispatchBelowADInplaceOrView guard;
    pairs.here(self).copy_(source.is_cuda() ? pairs.here(source) : source);
    return self;
}
}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("empty.memory_format", &empty);
    m.impl("empty_strided", &empty_strided);
    m.impl("copy_", &copy_);
}
TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
