// Reads an array's address and layout in some tens of nanoseconds: exact NumPy arrays, and tensors whose type offers the
// DLPack C exchange table (torch >= 2.10). Anything else is left to curvk._arrays, which also words every error.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace curvk {

namespace py = pybind11;

enum class Format : uint8_t { f32, f64, bf16, f16, u16, i64, u8, other };

inline int64_t itemsize(Format f) {
    switch (f) {
        case Format::f32: return 4;
        case Format::bf16:
        case Format::f16:
        case Format::u16: return 2;
        case Format::u8: return 1;
        default: return 8;
    }
}

// What an element of `have` may stand for: u16, any array of 16-bit integers, carries bf16 bit patterns.
inline bool accepts(Format want, Format have) { return want == have || (want == Format::bf16 && have == Format::u16); }

struct View {
    char* data = nullptr;  // the rest is set by view_of alone: a row has views that stay unused, and each store costs
    const int64_t* shape;
    const int64_t* strides;  // null: C-contiguous
    int ndim;
    int64_t stride_unit;  // bytes per unit of `strides`
    int64_t itemsize;
    Format format;
    bool writable;
    bool foreign;    // not NumPy's: its owner must be told of writes
    int32_t device;  // a CUDA device's number, or on_host

    static constexpr int32_t on_host = -1;

    int64_t size() const {
        int64_t n = 1;
        for (int i = 0; i < ndim; ++i) n *= shape[i];
        return n;
    }

    int64_t stride_bytes(int axis) const { return strides[axis] * stride_unit; }

    // Bytes per step of an axis, whether or not strides are stored.
    int64_t step(int axis) const {
        if (strides) return stride_bytes(axis);
        int64_t bytes = itemsize;
        for (int i = ndim - 1; i > axis; --i) bytes *= shape[i];
        return bytes;
    }

    bool c_contiguous() const {
        if (!strides) return true;
        int64_t expected = itemsize;
        for (int i = ndim; i-- > 0;) {
            if (shape[i] == 0) return true;
            if (shape[i] != 1 && stride_bytes(i) != expected) return false;
            expected *= shape[i];
        }
        return true;
    }

    bool same_shape(const View& o) const {
        if (ndim != o.ndim) return false;
        for (int i = 0; i < ndim; ++i)
            if (shape[i] != o.shape[i]) return false;
        return true;
    }

    // Element k of this array in memory order is element k of `o` too. Both fill their memory without gaps.
    bool same_dense_layout(const View& o) const {
        if (!same_shape(o)) return false;
        if (c_contiguous() && o.c_contiguous()) return true;
        if (!strides || !o.strides) return false;
        int64_t n = 1;
        for (int i = 0; i < ndim; ++i) {
            if (shape[i] == 1) continue;
            if (stride_bytes(i) % itemsize || stride_bytes(i) / itemsize != o.stride_bytes(i) / o.itemsize ||
                o.stride_bytes(i) % o.itemsize)
                return false;
            n *= shape[i];
        }
        // Dense: visiting the axes from the smallest stride up, each stride is the product of the lengths before it.
        for (int64_t expected = 1; expected < n;) {
            int64_t length = 0;
            for (int i = 0; i < ndim; ++i)
                if (shape[i] != 1 && stride_bytes(i) == expected * itemsize) length = shape[i];
            if (length == 0) return false;
            expected *= length;
        }
        return true;
    }
};

bool view_of(PyObject* object, View& view);

// Whether a tensor's own library has told its current stream on a CUDA device; otherwise the caller must find it.
bool current_stream(PyObject* tensor, int32_t device, void** stream);

// True for a tensor whose memory holds the negative of its values (torch's neg bit), which DLPack's table does not tell.
bool lazily_negated(PyObject* tensor);

}  // namespace curvk
