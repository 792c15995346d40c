// curvk._core: every kernel of the headers under one generic binder, the level switch and the thread settings.
//
// The binder accepts well-formed arrays at speed and nothing else: whatever it does not accept goes to
// curvk._arrays.resolve, the one place that words errors, which raises or returns plain arrays for a second look.
#include <dlfcn.h>

#include <algorithm>
#include <optional>

#include "bind/kernel.h"
#include "core/strided.h"
#include "curvk.h"

namespace curvk {
namespace {

constexpr size_t max_arrays = 20;
constexpr int64_t keep_gil_below = 8192;  // elements; releasing the GIL costs about as much as stepping these

Format named_format(const std::string& name) {
    for (const auto& [known, format] : {std::pair{"f32", Format::f32}, std::pair{"f64", Format::f64},
                                        std::pair{"bf16", Format::bf16}, std::pair{"f16", Format::f16},
                                        std::pair{"i64", Format::i64}})
        if (name == known) return format;
    throw py::value_error("no format named " + name);
}

std::unordered_map<std::string, std::vector<Kernel>>& registry() {
    static auto* const table = [] {
        auto* t = new std::unordered_map<std::string, std::vector<Kernel>>;
#define CURVK_KERNEL(op, format, elementwise, function, ...) \
    (*t)[op].push_back(make_kernel(op, named_format(format), elementwise, #function, function, {__VA_ARGS__}));
#include "bindings.inc"
#undef CURVK_KERNEL
        return t;
    }();
    return *table;
}

py::object python(const char* module, const char* name) { return py::module_::import(module).attr(name); }

// ---- the CUDA library -------------------------------------------------------------------------------------------------

const char* (*cuda_message)() = nullptr;  // null until a CUDA library is loaded
bool emulating = false;                   // arrays on the host go to that library, which must be the emulator

// Takes every kernel's CUDA version from a library. Called again it replaces them.
void load_cuda(const std::string& path) {
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    const auto message = reinterpret_cast<const char* (*)()>(dlsym(library, "curvk_cuda_status_message"));
    if (!message) throw std::runtime_error(path + " is not curvk's CUDA library");
    for (auto& [op, variants] : registry())
        for (Kernel& k : variants)
            k.on_device = reinterpret_cast<void (*)()>(dlsym(library, (std::string(k.symbol) + "_cuda").c_str()));
    cuda_message = message;
}

// Whether a kernel runs on devices, in all its formats; false before the library is loaded.
bool has_cuda(const std::string& op) {
    const auto found = registry().find(op);
    return found != registry().end() && found->second.front().on_device;
}

struct StridedRow {
    std::vector<int64_t> shape;
    std::vector<StridedArray> arrays;  // one per table; data is null for an absent one
    std::vector<int64_t> values;       // one per array of values per row
};

// Arrays bound to a kernel: checked, and laid out as the tables it takes.
class Plan {
   public:
    Plan(const std::string& op, const py::tuple& columns, const py::object& format) : op_(op) {
        const auto found = registry().find(op);
        if (found == registry().end()) throw py::key_error("no kernel named " + op);
        variants_ = &found->second;
        if (!format.is_none()) fixed_format_ = int(named_format(py::str(format)));
        rebind(columns);
    }

    // Takes other arrays in place of the present ones; costs some tens of nanoseconds per array.
    void rebind(const py::tuple& columns) {
        if (running_) throw std::runtime_error(op_ + ": the plan is running in another thread; rebind it afterwards");
        if (columns.size() != variants_->front().arrays.size())
            throw py::type_error(op_ + ": wrong number of array arguments");
        bool accepted = bind(columns, false);
        if (!accepted) {
            const py::object format = fixed_format_ < 0 ? py::object(py::none()) : py::str(kernel_format_name());
            const py::tuple resolved = python("curvk._arrays", "resolve")(op_, columns, format);
            if (!bind(resolved[0], true)) throw std::runtime_error(op_ + ": the binder refuses arrays that were resolved");
            foreign_ = py::len(resolved[1]) > 0 ? py::object(resolved[1]) : py::object();  // the tensors behind the arrays
            if (!resolved[2].is_none()) {  // arrays on a device: what was bound are their addresses
                device_ = resolved[2].cast<int32_t>();
                stream_of_ = resolved[3];
            }
        }
    }

    // Lets go of the arrays in these columns; the plan does not run until it is bound again. What it knows of the others
    // stays, so that the next bind is quick.
    void release(const py::tuple& which) {
        if (running_) throw std::runtime_error(op_ + ": the plan is running in another thread; release it afterwards");
        if (!columns_) return;
        const auto bound = py::reinterpret_borrow<py::tuple>(columns_);
        py::tuple own(bound.size());
        for (size_t c = 0; c < own.size(); ++c) own[c] = bound[c];
        for (const py::handle c : which) {
            const size_t place = c.cast<size_t>();
            if (place >= own.size()) throw py::index_error(op_ + ": no such column");
            own[place] = py::none();
        }
        columns_ = own;
        released_ = true;
    }

    void run(const py::tuple& scalars) {
        // Numbers first: converting one may run Python code, which may rebind this plan.
        Slot slots[max_arguments];
        size_t given = 0;
        const auto& formal = variants_->front().arguments;  // every variant takes the same scalars in the same places
        for (size_t i = 0; i < formal.size(); ++i) {
            if (!formal[i].is_scalar()) continue;
            if (given >= scalars.size()) throw py::type_error(op_ + ": too few scalars");
            slots[i] = scalar(formal[i], scalars[given++]);
        }
        if (given != scalars.size()) throw py::type_error(op_ + ": too many scalars");
        if (!kernel_) throw std::runtime_error(op_ + ": the plan's last arrays were refused; rebind it");
        if (released_) throw std::runtime_error(op_ + ": the plan's arrays were released; rebind it");
        const Kernel& k = *kernel_;
        size_t column = 0;
        for (size_t i = 0; i < k.arguments.size(); ++i) {
            switch (k.arguments[i].kind) {
                case Argument::sizes: slots[i].pointer = sizes_.data(); break;
                case Argument::count: slots[i].integer = int64_t(sizes_.size()); break;
                case Argument::table: slots[i].pointer = present_[column] ? table(column) : nullptr; ++column; break;
                case Argument::array: slots[i].pointer = present_[column] ? *table(column) : nullptr; ++column; break;
                case Argument::row_values: slots[i].pointer = row_values_[column].data(); ++column; break;
                default: break;
            }
        }
        int32_t status = CURVK_OK;
        {
            const Running running(running_);  // the two calls below may run Python code, which must not rebind this plan
            void* const stream = stream_now();
            if (device_ < 0 && curvk_forked() && total_ >= 2 * keep_gil_below) warn_forked();  // may raise, with nothing written
            std::optional<py::gil_scoped_release> released;
            if (total_ >= keep_gil_below) released.emplace();
            if (strided_.empty() || !sizes_.empty()) status = call(k, slots, stream);
            for (size_t row = 0; row < strided_.size() && status == CURVK_OK; ++row) status = run_row(strided_[row], slots);
        }
        if (status > 0) {
            const auto [name, position] = scalar_at(size_t(status) - 1);
            python("curvk._errors", "out_of_range")(op_, name, scalars[position]);
        }
        if (status == CURVK_NO_MEMORY) throw std::bad_alloc();
        if (status < 0) throw std::runtime_error(cuda_message());
        if (foreign_) python("curvk._arrays", "written")(foreign_);
    }

   private:
    // Counts, under the GIL, the calls under way; rebind refuses meanwhile.
    class Running {
       public:
        explicit Running(int& count) : count_(count) { ++count_; }
        ~Running() { --count_; }

       private:
        int& count_;
    };

    struct Interval {
        uintptr_t begin, end;
        bool operator<(const Interval& o) const { return begin < o.begin; }
        bool operator==(const Interval& o) const { return begin == o.begin && end == o.end; }
    };

    int32_t call(const Kernel& k, const Slot* slots, void* stream) const {
        if (device_ >= 0) return k.invoke_on(k.on_device, slots, device_, stream);
        if (emulating && k.on_device) return k.invoke_on(k.on_device, slots, 0, nullptr);
        return k.invoke(k.function, slots);
    }

    // The stream in which the arrays' library works now on their device.
    void* stream_now() const {
        void* stream = nullptr;
        if (device_ < 0) return stream;
        if (stream_of_) return reinterpret_cast<void*>(stream_of_().cast<uintptr_t>());
        current_stream(item(PyTuple_GET_ITEM(columns_.ptr(), 0), 0), device_, &stream);
        return stream;
    }

    const char* kernel_format_name() const {
        switch (Format(fixed_format_)) {
            case Format::f32: return "f32";
            case Format::f64: return "f64";
            case Format::bf16: return "bf16";
            case Format::i64: return "i64";
            default: return "f16";
        }
    }

    const Kernel* variant(const View& first) const {
        for (const Kernel& k : *variants_) {
            if (fixed_format_ >= 0 ? int(k.format) == fixed_format_ : accepts(k.arrays[0]->element, first.format)) return &k;
        }
        return nullptr;
    }

    // Item `row` of a column: that of a list or tuple, or the column itself where it is one array.
    static PyObject* item(PyObject* column, size_t row) {
        return PyList_CheckExact(column)    ? PyList_GET_ITEM(column, Py_ssize_t(row))
               : PyTuple_CheckExact(column) ? PyTuple_GET_ITEM(column, Py_ssize_t(row))
                                            : column;
    }
    static size_t length(PyObject* column) {
        return PyList_CheckExact(column) || PyTuple_CheckExact(column) ? size_t(Py_SIZE(column)) : 1;
    }

    // Fills the tables. False where anything is unusual; the plan is then unusable until a bind succeeds. `resolved`
    // arrays were checked in Python: rows whose layouts differ are kept as strided rows instead of refused.
    //
    // A written column that is a tuple belongs to the caller: it tells the arrays' owner of writes itself, and keeps their
    // memory in place. If it is the very tuple of the last bind it is frozen, its arrays are not read again. A thousand
    // tensors that were not touched for a step cost more to look at than to step.
    bool bind(const py::tuple& columns, bool resolved) {
        freeze_ = may_freeze(columns);
        if (try_bind(columns, resolved)) return true;
        if (!freeze_) return false;
        freeze_ = false;  // perhaps a parameter's layout has changed: read everything
        return try_bind(columns, resolved);
    }

    bool may_freeze(const py::tuple& columns) const {
        if (!kernel_ || !strided_.empty() || columns.size() != size_t(PyTuple_GET_SIZE(columns_.ptr()))) return false;
        bool any = false;
        for (size_t c = 0; c < kernel_->arrays.size(); ++c) {
            if (!owned(*kernel_->arrays[c], columns[c].ptr())) continue;
            if (PyTuple_GET_ITEM(columns_.ptr(), Py_ssize_t(c)) != columns[c].ptr()) return false;
            any = true;
        }
        return any;
    }

    static bool owned(const Argument& a, PyObject* column) {
        return a.kind == Argument::table && a.written && PyTuple_CheckExact(column);
    }

    bool try_bind(const py::tuple& columns, bool resolved) {
        const Kernel* const last_kernel = kernel_;
        const int32_t last_device = device_;
        kernel_ = nullptr;
        sizes_.clear();
        strided_.clear();
        written_.clear();
        read_.clear();
        if (!freeze_) {
            owned_.clear();
            layouts_.clear();
        }
        layout_ = 0;
        total_ = 0;
        foreign_ = py::object();
        stream_of_ = py::object();
        device_ = View::on_host;
        const size_t rows = length(columns[0].ptr());
        if (freeze_ && rows != rows_) return false;
        rows_ = rows;
        View first;
        if (PyTuple_CheckExact(columns[0].ptr())) return false;
        if (rows_ > 0 && !view_of(item(columns[0].ptr(), 0), first)) return false;
        const Kernel* k = rows_ > 0 ? variant(first) : &variants_->front();
        if (!k || (freeze_ && k != last_kernel)) return false;
        if (rows_ > 0) device_ = first.device;
        if (freeze_ && device_ != last_device) return false;
        if (device_ >= 0 && !k->on_device) return false;
        const auto& arrays = k->arrays;
        if (arrays.size() > max_arrays) throw std::runtime_error(op_ + ": raise max_arrays in the binder");
        addresses_.resize(arrays.size() * std::max<size_t>(rows_, 1));
        for (size_t c = 0; c < arrays.size(); ++c) {
            PyObject* column = columns[c].ptr();
            present_[c] = column != Py_None;
            owned_column_[c] = owned(*arrays[c], column);
            if ((PyTuple_CheckExact(column) || PyList_CheckExact(column)) && !PyList_CheckExact(columns[0].ptr())) return false;
            if (arrays[c]->per && arrays[c]->nullable && present_[c] != present_[c - 1]) return false;  // codes and their scales
            if (!present_[c]) {
                if (!arrays[c]->nullable) return false;
            } else if (arrays[c]->kind == Argument::table) {
                if (length(column) != rows_) return false;
            } else {
                View v;
                if (!view(column, *arrays[c], known(c, 0) == column, v) || !v.c_contiguous()) return false;
                if (v.device != (arrays[c]->on_device(k->is_list()) ? device_ : View::on_host)) return false;
                row_values_[c].clear();
                if (arrays[c]->kind == Argument::row_values && (v.ndim != 1 || v.size() != int64_t(rows_))) return false;
                *table(c) = v.data;
                note(v, c, *arrays[c], column);
                total_ += k->is_list() ? 0 : v.size();
            }
        }
        if (k->is_list())
            for (size_t row = 0; row < rows_; ++row)
                if (!bind_row(*k, columns, row, resolved && k->elementwise)) return false;
        if (resolved) last_written_.clear(), sorted_.clear();
        else if (overlapping()) return false;
        kernel_ = k;
        columns_ = kept(columns);
        released_ = false;
        return true;
    }

    // The columns with lists as tuples: the arrays stay alive although their caller may take them out of its list.
    static py::tuple kept(const py::tuple& columns) {
        const auto is_list = [](py::handle c) { return PyList_CheckExact(c.ptr()); };
        if (std::none_of(columns.begin(), columns.end(), is_list)) return columns;
        py::tuple own(columns.size());
        for (size_t c = 0; c < columns.size(); ++c) {
            if (PyList_CheckExact(columns[c].ptr())) own[c] = py::tuple(columns[c]);
            else own[c] = columns[c];
        }
        return own;
    }

    bool bind_row(const Kernel& k, const py::tuple& columns, size_t row, bool allow_strided) {
        View views[max_arrays];
        bool flat = true;
        for (size_t c = 0; c < k.arrays.size(); ++c) {
            if (k.arrays[c]->kind != Argument::table || !present_[c] || (freeze_ && owned_column_[c])) continue;
            PyObject* object = item(columns[c].ptr(), row);
            if (!view(object, *k.arrays[c], known(c, row) == object, views[c]) || views[c].device != device_) return false;
            if (const int64_t per = k.arrays[c]->per) {
                const View& v = views[c];
                if (v.ndim != 1 || !v.c_contiguous() || v.size() != (views[0].size() + per - 1) / per) return false;
                continue;
            }
            if (!views[c].same_shape(views[0])) return false;
            flat = flat && views[c].same_dense_layout(views[0]) && (!k.indexed || views[c].c_contiguous());
        }
        if (!flat && (!allow_strided || device_ >= 0)) return false;
        if (!same_layout(views[0])) return false;
        const int64_t n = views[0].size();
        if (n == 0) return true;
        total_ += n;
        if (!flat) strided_.push_back({{views[0].shape, views[0].shape + views[0].ndim}, {}, {}});
        for (size_t c = 0; c < k.arrays.size(); ++c)
            if (k.arrays[c]->kind == Argument::row_values)
                (flat ? row_values_[c] : strided_.back().values).push_back(static_cast<const int64_t*>(*table(c))[row]);
        for (size_t c = 0; c < k.arrays.size(); ++c) {
            const Argument& a = *k.arrays[c];
            const View& v = views[c];
            if (a.kind != Argument::table || (freeze_ && owned_column_[c])) continue;
            if (flat) {
                table(c)[sizes_.size()] = v.data;
            } else {
                strided_.back().arrays.push_back({v.data, itemsize(a.element), a.written, {}, a.per});
                for (int axis = 0; v.data && axis < v.ndim; ++axis)
                    strided_.back().arrays.back().strides.push_back(v.step(axis));
            }
            if (v.data) note(v, c, a, item(columns[c].ptr(), row));
        }
        if (flat) sizes_.push_back(n);
        return true;
    }

    // Remembers the layout of a row's first array; with frozen columns, tells whether it is the remembered one.
    bool same_layout(const View& v) {
        const size_t length = 1 + 2 * size_t(v.ndim);
        if (!freeze_) {
            if (std::none_of(owned_column_, owned_column_ + max_arrays, [](bool o) { return o; })) return true;
            layouts_.push_back(v.ndim);
            for (int i = 0; i < v.ndim; ++i) layouts_.insert(layouts_.end(), {v.shape[i], v.step(i)});
            return true;
        }
        if (layout_ + length > layouts_.size() || layouts_[layout_] != v.ndim) return false;
        for (int i = 0; i < v.ndim; ++i) {
            const int64_t* const axis = &layouts_[layout_ + 1 + 2 * size_t(i)];
            if (axis[0] != v.shape[i] || axis[1] != v.step(i)) return false;
        }
        layout_ += length;
        return true;
    }

    // The addresses of array argument c, one per flat row.
    void** table(size_t c) { return addresses_.data() + c * std::max<size_t>(rows_, 1); }

    // The object that the last successful bind saw in this place, or null.
    PyObject* known(size_t c, size_t row) const {
        if (!columns_ || c >= size_t(PyTuple_GET_SIZE(columns_.ptr()))) return nullptr;
        PyObject* column = PyTuple_GET_ITEM(columns_.ptr(), Py_ssize_t(c));
        return row < length(column) ? item(column, row) : nullptr;
    }

    // torch makes lazily negated tensors as views of the imaginary halves of complex memory, two strides apart: a tensor
    // without gaps need not be asked, which would cost as much as all the rest.
    static bool view(PyObject* object, const Argument& a, bool known, View& v) {
        if (!view_of(object, v) || !accepts(a.element, v.format) || (a.written && !v.writable)) return false;
        const bool gaps = v.size() == 1 || !v.c_contiguous();
        return !(v.foreign && gaps && !known && lazily_negated(object));
    }

    // Remembers the memory an array takes and, if it is written, whom to tell.
    void note(const View& v, size_t c, const Argument& a, PyObject* object) {
        const auto begin = reinterpret_cast<uintptr_t>(v.data);
        auto& intervals = owned_column_[c] ? owned_ : a.written ? written_ : read_;
        intervals.push_back({begin, begin + size_t(v.size() * v.itemsize)});
        if (!v.foreign || !a.written || owned_column_[c]) return;
        if (!foreign_) foreign_ = py::list();
        py::reinterpret_borrow<py::list>(foreign_).append(py::handle(object));
    }

    // True where a written array shares memory with any other.
    bool overlapping() {
        if (!freeze_ || written_ != last_written_) {
            sorted_ = written_;
            sorted_.insert(sorted_.end(), owned_.begin(), owned_.end());
            std::sort(sorted_.begin(), sorted_.end());
            last_written_ = written_;
            for (size_t i = 1; i < sorted_.size(); ++i)
                if (sorted_[i].begin < sorted_[i - 1].end) {
                    last_written_.clear();
                    return true;
                }
        }
        for (const Interval& r : read_) {
            const auto after = std::lower_bound(sorted_.begin(), sorted_.end(), Interval{r.end, 0});
            if (after != sorted_.begin() && std::prev(after)->end > r.begin) return true;
        }
        return false;
    }

    Slot scalar(const Argument& a, const py::handle& object) const {
        Slot slot;
        if (a.kind == Argument::real) {
            slot.real = PyFloat_AsDouble(object.ptr());
        } else {
            const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
            slot.integer = index ? PyLong_AsLongLong(index.ptr()) : -1;
        }
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_Exception)) throw py::error_already_set();  // Ctrl-C
            PyErr_Clear();
            python("curvk._errors", "not_a_number")(op_, a.name, object, a.kind == Argument::integer);
        }
        return slot;
    }

    // The name and place among the given scalars of argument i.
    std::pair<std::string, size_t> scalar_at(size_t i) const {
        size_t place = 0;
        for (size_t j = 0; j < i; ++j)
            if (kernel_->arguments[j].is_scalar()) ++place;
        return {kernel_->arguments[i].name, place};
    }

    int32_t run_row(const StridedRow& row, const Slot* slots) const {
        struct Context {
            const Plan* plan;
            const StridedRow* row;
            const Slot* slots;
        } context{this, &row, slots};
        return run_strided(
            row.shape, row.arrays,
            [](void* given, void* const* blocks, int64_t start, int64_t n) {
                const auto& c = *static_cast<const Context*>(given);
                const Kernel& k = *c.plan->kernel_;
                Slot own[max_arguments];
                int64_t values[max_arrays];
                size_t column = 0, value = 0;
                for (size_t i = 0; i < k.arguments.size(); ++i) {
                    own[i] = c.slots[i];
                    if (k.arguments[i].kind == Argument::row_values) {
                        values[value] = c.row->values[value] + (k.arguments[i].is_offset() ? start : 0);
                        own[i].pointer = &values[value++];
                    }
                    if (k.arguments[i].kind == Argument::count) own[i].integer = 1;
                    if (k.arguments[i].kind == Argument::sizes) own[i].pointer = &n;
                    if (k.arguments[i].kind == Argument::table) {
                        void* const* const block = blocks + column++;
                        own[i].pointer = *block ? const_cast<void**>(block) : nullptr;
                    }
                }
                return c.plan->call(k, own, nullptr);
            },
            &context);
    }

    static void warn_forked() {
        static bool warned = false;
        if (warned) return;
        warned = true;
        if (PyErr_WarnEx(PyExc_RuntimeWarning,
                         "curvk runs on one thread in a forked process, where OpenMP's threads are gone; start the "
                         "process with the spawn or forkserver method to use more",
                         1))
            throw py::error_already_set();
    }

    std::string op_;
    const std::vector<Kernel>* variants_;
    int fixed_format_ = -1;
    const Kernel* kernel_ = nullptr;
    size_t rows_ = 0;                 // arrays per list
    bool present_[max_arrays] = {};   // false: None was given
    std::vector<void*> addresses_;    // see table()
    std::vector<int64_t> sizes_;      // elements of each flat row
    std::vector<StridedRow> strided_;
    std::vector<int64_t> row_values_[max_arrays];  // of each flat row, for the columns that have values per row
    // Memory taken: by written arrays, by those of the caller's own tuples, and by arrays that are only read; then the
    // written ones of the last check and all of its written memory in order.
    std::vector<Interval> written_, owned_, read_, last_written_, sorted_;
    bool owned_column_[max_arrays] = {};
    int running_ = 0;                  // calls of the kernel under way
    bool freeze_ = false;              // this bind leaves the caller's own columns as they are
    std::vector<int64_t> layouts_;     // of each row's first array, kept while there are such columns
    size_t layout_ = 0;                // the next row's place in it
    int64_t total_ = 0;
    py::object columns_;   // see kept(); null before the first bind
    bool released_ = false;  // some of them are None by now
    int32_t device_ = View::on_host;
    py::object stream_of_;  // tells the stream where the arrays' library does not by DLPack's table
    py::object foreign_;   // list of written tensors, whose owner counts versions; null if there are none
};

}  // namespace
}  // namespace curvk

PYBIND11_MODULE(_core, m) {
    using curvk::Plan;
    namespace py = curvk::py;
    m.doc() = "Compiled kernels; use curvk.kernels, which documents them.";
    py::class_<Plan>(m, "Plan", "Arrays bound to a kernel once; see curvk._backend.Plan.")
        .def(py::init<const std::string&, const py::tuple&, const py::object&>(), py::arg("op"), py::arg("columns"),
             py::arg("format") = py::none())
        .def("rebind", &Plan::rebind, py::arg("columns"))
        .def("release", &Plan::release, py::arg("columns"))
        .def("run", &Plan::run, py::arg("scalars"));
    m.def(
        "call",
        [](const std::string& op, const py::tuple& columns, const py::tuple& scalars, const py::object& format) {
            Plan(op, columns, format).run(scalars);
        },
        py::arg("op"), py::arg("columns"), py::arg("scalars"), py::arg("format") = py::none());
    m.def("load_cuda", &curvk::load_cuda, py::arg("path"));
    m.def("has_cuda", &curvk::has_cuda, py::arg("op"));
    m.def("emulate_cuda", [](bool on) { curvk::emulating = on; }, py::arg("on"));
    m.def("simd", &curvk_simd);
    m.def("simd_available", &curvk_simd_available, py::arg("level"));
    m.def("set_simd", &curvk_set_simd, py::arg("level"));
    m.def("num_threads", &curvk_num_threads);
    m.def("threads_reason", &curvk_threads_reason);
    m.def("set_num_threads", &curvk_set_num_threads, py::arg("n"));
    m.def("set_thread_limit", &curvk_set_thread_limit, py::arg("n"));
    m.def("openmp", &curvk_openmp);
    m.def("version", &curvk_version);
}
