#include "bind/array_view.h"

#include <cstring>

namespace curvk {
namespace {

// ---- the part of the DLPack 1.3 ABI that is read here -----------------------------------------------------------------

struct DLTensor {
    void* data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct DLPackExchangeApi {
    struct {
        uint32_t major, minor;
    } version;
    DLPackExchangeApi* previous;
    void* allocate;
    void* managed_from_object;
    void* managed_to_object;
    int (*tensor_from_object)(void* object, DLTensor* out);
    int (*current_stream)(int32_t device_type, int32_t device, void** stream);
};

constexpr int32_t device_cpu = 1, device_cuda = 2;
constexpr uint8_t code_int = 0, code_uint = 1, code_float = 2, code_bfloat = 4;

// What a type itself defines under a name, borrowed, or null. Asked of its dict and not of the type, whose metaclass may
// run any code: a list that is being bound could then lose the arrays that were seen in it.
PyObject* own_attribute(PyTypeObject* type, const char* name) {
#if PY_VERSION_HEX >= 0x030C0000
    PyObject* const dict = PyType_GetDict(type);  // null for no type that Python code can have an object of
    PyObject* const found = dict ? PyDict_GetItemString(dict, name) : nullptr;
    Py_XDECREF(dict);  // the type holds it
    return found;
#else
    return type->tp_dict ? PyDict_GetItemString(type->tp_dict, name) : nullptr;
#endif
}

// The exchange table of a tensor type, or null. Only types that define it themselves count, and torch's Parameter, which
// shares Tensor's storage: other subclasses may wrap tensors that hold no memory of their own.
const DLPackExchangeApi* exchange_api(PyTypeObject* type) {
    struct Entry {
        PyTypeObject* type;
        const DLPackExchangeApi* api;
    };
    static Entry cache[8];  // guarded by the GIL
    static int used = 0;
    for (int i = 0; i < used; ++i)
        if (cache[i].type == type) return cache[i].api;
    const DLPackExchangeApi* api = nullptr;
    PyObject* capsule = own_attribute(type, "__dlpack_c_exchange_api__");
    if (!capsule && type->tp_base && std::strcmp(type->tp_name, "Parameter") == 0) {
        PyObject* const module = own_attribute(type, "__module__");
        if (module && PyUnicode_Check(module) && PyUnicode_CompareWithASCIIString(module, "torch.nn.parameter") == 0)
            capsule = own_attribute(type->tp_base, "__dlpack_c_exchange_api__");
    }
    if (capsule && PyCapsule_IsValid(capsule, "dlpack_exchange_api")) {
        api = static_cast<const DLPackExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
        if (api->version.major != 1 || !api->tensor_from_object) api = nullptr;
    }
    if (api && used < 8) {
        Py_INCREF(type);  // a cached type must not be freed and its address reused
        cache[used++] = {type, api};
    }
    return api;
}

bool view_of_tensor(PyObject* object, View& view) {
    const DLPackExchangeApi* api = exchange_api(Py_TYPE(object));
    if (!api) return false;
    DLTensor t;
    if (api->tensor_from_object(object, &t) != 0) {
        PyErr_Clear();  // curvk._arrays will say what is wrong with it
        return false;
    }
    if ((t.device.type != device_cpu && t.device.type != device_cuda) || t.dtype.lanes != 1) return false;
    view.device = t.device.type == device_cuda ? t.device.id : View::on_host;
    view.data = static_cast<char*>(t.data) + t.byte_offset;
    view.shape = t.shape;
    view.strides = t.strides;
    view.ndim = t.ndim;
    view.itemsize = t.dtype.bits / 8;
    view.stride_unit = view.itemsize;
    view.format = Format::other;
    if (t.dtype.code == code_float)
        view.format = t.dtype.bits == 32   ? Format::f32
                      : t.dtype.bits == 64 ? Format::f64
                      : t.dtype.bits == 16 ? Format::f16
                                           : Format::other;
    else if (t.dtype.code == code_bfloat && t.dtype.bits == 16)
        view.format = Format::bf16;
    else if (t.dtype.code == code_int && t.dtype.bits == 64)
        view.format = Format::i64;
    else if (t.dtype.bits == 16 && (t.dtype.code == code_int || t.dtype.code == code_uint))
        view.format = Format::u16;
    else if (t.dtype.code == code_uint && t.dtype.bits == 8)
        view.format = Format::u8;
    view.writable = true;
    view.foreign = true;
    if (!view.data && view.size() > 0) return false;  // a tensor without memory, such as autograd's lazy zeros
    return view.itemsize == 0 || reinterpret_cast<uintptr_t>(view.data) % size_t(view.itemsize) == 0;
}

// ml_dtypes registers its bfloat16 with NumPy at run time, under a number that is not known before.
bool is_bfloat16(const PyObject* scalar_type) {
    return std::strcmp(reinterpret_cast<const PyTypeObject*>(scalar_type)->tp_name, "ml_dtypes.bfloat16") == 0;
}

Format format_of(const py::detail::PyArrayDescr_Proxy& descr) {
    using api = py::detail::npy_api;
    switch (descr.type_num) {
        case api::NPY_FLOAT_: return Format::f32;
        case api::NPY_DOUBLE_: return Format::f64;
        case api::NPY_SHORT_:
        case api::NPY_USHORT_: return Format::u16;
        case api::NPY_UBYTE_: return Format::u8;
        case 23: return Format::f16;  // NPY_HALF, which pybind11 does not name
        case api::NPY_LONG_: return sizeof(long) == 8 ? Format::i64 : Format::other;
        case api::NPY_LONGLONG_: return Format::i64;
        default: return descr.type_num >= 256 && is_bfloat16(descr.typeobj) ? Format::bf16 : Format::other;
    }
}

}  // namespace

bool lazily_negated(PyObject* tensor) {
    static PyObject* const name = PyUnicode_InternFromString("is_neg");
    const py::object answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, name));
    if (!answer) PyErr_Clear();  // another library's tensor, without such a bit
    return answer.ptr() == Py_True;
}

bool current_stream(PyObject* tensor, int32_t device, void** stream) {
    const DLPackExchangeApi* const api = exchange_api(Py_TYPE(tensor));
    if (!api || !api->current_stream) return false;
    if (api->current_stream(device_cuda, device, stream) == 0) return true;
    throw py::error_already_set();
}

bool view_of(PyObject* object, View& view) {
    using api = py::detail::npy_api;
    static const PyTypeObject* const ndarray = api::get().PyArray_Type_;
    if (Py_TYPE(object) != ndarray) return view_of_tensor(object, view);
    const auto* array = py::detail::array_proxy(object);
    const auto* descr = py::detail::array_descriptor_proxy(array->descr);
    static_assert(sizeof(ssize_t) == sizeof(int64_t), "NumPy's strides are 64-bit");
    view.data = array->data;
    view.shape = reinterpret_cast<const int64_t*>(array->dimensions);
    view.strides = reinterpret_cast<const int64_t*>(array->strides);
    view.ndim = array->nd;
    view.stride_unit = 1;
    view.format = descr->byteorder == '>' ? Format::other : format_of(*descr);
    view.itemsize = itemsize(view.format);
    view.writable = array->flags & api::NPY_ARRAY_WRITEABLE_;
    view.foreign = false;
    view.device = View::on_host;
    if (array->flags & api::NPY_ARRAY_C_CONTIGUOUS_) view.strides = nullptr;
    return array->flags & api::NPY_ARRAY_ALIGNED_;
}

}  // namespace curvk
