# The CUDA library from the files of csrc/cuda: by nvcc for devices (LANGUAGE CUDA), or by the C++ compiler for the emulator
# (LANGUAGE CXX), which runs the same kernels on the CPU.

function(curvk_add_cuda target language)
  if(language STREQUAL "CUDA")
    add_library(${target} SHARED ${ARGN} ${generated}/cuda_dispatch.cpp)
    # The runtime is linked in: torch brings another copy of it, and both work side by side.
    set_target_properties(${target} PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 17
                                               CUDA_VISIBILITY_PRESET hidden)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --expt-relaxed-constexpr -Xcompiler=-ffp-contract=off>)
  else()
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
    add_library(${target} SHARED ${ARGN} csrc/cuda/emulator/emulator.cpp ${generated}/cuda_dispatch.cpp)
    target_compile_options(${target} PRIVATE -x c++ -O2 -fno-math-errno -ffp-contract=off -Wno-unknown-pragmas)
    target_compile_definitions(${target} PRIVATE CURVK_CUDA_EMULATOR)
  endif()
  add_dependencies(${target} curvk_generated)
  target_include_directories(${target} PRIVATE csrc csrc/include ${generated})
  target_compile_definitions(${target} PRIVATE CURVK_LEVEL=curvk_cuda)
  install(TARGETS ${target} DESTINATION curvk COMPONENT python)
  install(FILES ${generated}/curvk_cuda.h DESTINATION curvk/include COMPONENT python)
endfunction()
