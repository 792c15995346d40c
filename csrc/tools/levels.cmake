# SIMD levels: which ones this compiler builds, and kernel files compiled once for each.
include(CheckCXXCompilerFlag)

set(CURVK_LEVELS "" CACHE STRING "x86-64 levels to build, e.g. 3; empty: all that the compiler knows")

# Sets `out` to the levels to build, lowest first: 2 3 4 on x86-64, 8 on armv8-a, 0 (the compiler's default) elsewhere.
function(curvk_levels out)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(levels)
    if(CURVK_LEVELS)
      set(wanted ${CURVK_LEVELS})
    else()
      set(wanted 2 3 4)
    endif()
    foreach(level IN LISTS wanted)
      check_cxx_compiler_flag(-march=x86-64-v${level} CURVK_HAS_V${level})
      if(CURVK_HAS_V${level})
        list(APPEND levels ${level})
      endif()
    endforeach()
    if(NOT levels)
      message(FATAL_ERROR "The compiler knows no -march=x86-64-v2: curvk needs GCC 11, Clang 12 or newer")
    endif()
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    set(levels 8)
  else()
    set(levels 0)
  endif()
  set(${out} ${levels} PARENT_SCOPE)
endfunction()

# Compiles the kernel files for one level into `target`, each level in a namespace of its own.
function(curvk_add_level target level)
  set(objects ${target}_level_${level})
  add_library(${objects} OBJECT ${ARGN})
  target_include_directories(${objects} PRIVATE csrc csrc/include)
  target_compile_definitions(${objects} PRIVATE CURVK_LEVEL=curvk_level_${level})
  target_compile_options(
    ${objects}
    PRIVATE -O3 # the loops must vectorise, also in a debug build's kernels
            -fno-math-errno # else sqrt may set errno and GCC keeps the Adam loop scalar
            -ffp-contract=off # else levels with FMA round differently from v2 and from Numba
            -fno-trapping-math # else the selects of the fp16 conversion stay scalar
            -fno-exceptions # kernels throw nothing, and landing pads would refer to a symbol that all levels share
            -Wall -Wextra -Wno-unknown-pragmas
            -Wno-maybe-uninitialized) # GCC 12 takes buffers that another function fills for unset ones
  if(level GREATER_EQUAL 2 AND level LESS_EQUAL 4)
    target_compile_options(${objects} PRIVATE -march=x86-64-v${level})
  endif()
  if(level EQUAL 4)
    check_cxx_compiler_flag(-mprefer-vector-width=512 CURVK_HAS_VECTOR_WIDTH)
    if(CURVK_HAS_VECTOR_WIDTH) # GCC 12's own choice; with 256 the 8-bit Adam step takes 1.3 to 1.4 times as long
      target_compile_options(${objects} PRIVATE -mprefer-vector-width=512)
    endif()
  endif()
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
endfunction()
