// A kernel as the binder sees it: its arguments, deduced from the C signature, and a way to call it with values chosen at
// run time. A new kernel needs no edit here.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bind/array_view.h"
#include "core/strided.h"

namespace curvk {

constexpr size_t max_arguments = 40;

union Slot {
    void* pointer;
    int64_t integer;
    double real;
};

struct Argument {
    // sizes and count belong to a list kernel's tables: they follow from the arrays, the caller does not pass them.
    // row_values is an array with an integer for each array of the list.
    enum Kind : uint8_t { table, array, row_values, sizes, count, integer, real } kind;
    Format element;  // of a table or an array
    bool written;
    bool nullable = false;
    bool with_tables = false;  // lies where the tables' arrays do, although it is only read
    int32_t per = 0;  // a table whose arrays have one element for so many of the first table's; 0: as many as those
    std::string name{};

    bool is_array() const { return kind == table || kind == array || kind == row_values; }
    // In a function of tables what is only read beside them (draws, coefs) is for the host, as are values per row.
    bool on_device(bool of_list) const {
        return kind == table || (kind == array && (written || with_tables || !of_list));
    }
    bool is_offset() const { return kind == row_values && name == "offset"; }
    bool is_scalar() const { return kind == integer || kind == real; }
};

struct Kernel {
    std::string op;
    Format format;
    bool elementwise;
    std::vector<Argument> arguments;
    int32_t (*invoke)(void (*function)(), const Slot* slots);
    int32_t (*invoke_on)(void (*function)(), const Slot* slots, int32_t device, void* stream);
    void (*function)();
    const char* symbol;  // its name in C
    void (*on_device)() = nullptr;  // its CUDA version; null without one, and before the CUDA library is loaded

    std::vector<const Argument*> arrays{};  // the array arguments in order
    bool indexed = false;  // C order matters: told the logical index of each row's first element, or has tables `per`

    bool is_list() const { return arguments[0].kind == Argument::table; }
};

// ---- from a C signature to a Kernel -----------------------------------------------------------------------------------

template <class T>
constexpr Format element_format(Format sixteen_bit) {
    using U = std::remove_const_t<T>;
    if (std::is_same_v<U, float>) return Format::f32;
    if (std::is_same_v<U, double>) return Format::f64;
    if (std::is_same_v<U, int64_t>) return Format::i64;
    if (std::is_same_v<U, uint16_t>) return sixteen_bit;
    if (std::is_same_v<U, uint8_t>) return Format::u8;
    return Format::other;
}

template <class T>
Argument argument(Format sixteen_bit) {
    if constexpr (std::is_same_v<T, int64_t>) {
        return {Argument::integer, Format::other, false};
    } else if constexpr (std::is_same_v<T, double>) {
        return {Argument::real, Format::other, false};
    } else {
        using Pointee = std::remove_pointer_t<T>;
        if constexpr (std::is_pointer_v<Pointee>) {
            using Element = std::remove_pointer_t<Pointee>;
            return {Argument::table, element_format<Element>(sixteen_bit), !std::is_const_v<Element>};
        } else {
            return {Argument::array, element_format<Pointee>(sixteen_bit), !std::is_const_v<Pointee>};
        }
    }
}

template <class T>
T value(const Slot& slot) {
    if constexpr (std::is_same_v<T, int64_t>) return slot.integer;
    else if constexpr (std::is_same_v<T, double>) return slot.real;
    else return reinterpret_cast<T>(slot.pointer);
}

template <class... A, size_t... I>
int32_t invoke(int32_t (*f)(A...), const Slot* slots, std::index_sequence<I...>) {
    return f(value<A>(slots[I])...);
}

template <class... A>
struct OnDevice {  // a class, since two packs of a function would not be told apart here
    using Function = int32_t (*)(A..., int32_t device, void* stream);

    template <size_t... I>
    static int32_t invoke(Function f, const Slot* slots, int32_t device, void* stream, std::index_sequence<I...>) {
        return f(value<A>(slots[I])..., device, stream);
    }
};

template <class... A>
Kernel make_kernel(const char* op, Format format, bool elementwise, const char* symbol, int32_t (*f)(A...),
                   std::initializer_list<const char*> names) {
    static_assert(sizeof...(A) > 0 && sizeof...(A) <= max_arguments, "raise max_arguments");
    Kernel k{op, format, elementwise, {argument<A>(format)...}, nullptr, nullptr, reinterpret_cast<void (*)()>(f), symbol};
    k.invoke_on = [](void (*function)(), const Slot* slots, int32_t device, void* stream) {
        using Call = OnDevice<A...>;
        const auto f = reinterpret_cast<typename Call::Function>(function);
        return Call::invoke(f, slots, device, stream, std::index_sequence_for<A...>{});
    };
    k.invoke = [](void (*function)(), const Slot* slots) {
        return invoke(reinterpret_cast<int32_t (*)(A...)>(function), slots, std::index_sequence_for<A...>{});
    };
    size_t i = 0;
    for (const std::string marked : names) {  // what the marks after a name mean is in csrc/tools/generate.py
        Argument& a = k.arguments[i++];
        const size_t end = std::min(marked.find_first_of("?#@~/"), marked.size());
        a.name = marked.substr(0, end);
        for (size_t at = end; at < marked.size(); ++at) {
            if (marked[at] == '?') a.nullable = true;
            if (marked[at] == '@') a.with_tables = true;
            if (marked[at] == '#') a.kind = Argument::row_values;
            if (marked[at] == '~') a.element = Format::bf16;
            if (marked[at] == '/') a.per = std::stoi(marked.substr(at + 1));
        }
        if (elementwise && a.per && block_length % a.per) throw std::logic_error(marked + ": must divide block_length");
        k.indexed = k.indexed || a.is_offset() || a.per;
        if (k.is_list() && a.name == "sizes") a.kind = Argument::sizes;
        if (k.is_list() && a.name == "count") a.kind = Argument::count;
    }
    for (const Argument& a : k.arguments)  // the vector's memory stays put when a Kernel is moved
        if (a.is_array()) k.arrays.push_back(&a);
    return k;
}

}  // namespace curvk
