# SPDX-FileCopyrightText: The pyallreduce authors
# SPDX-License-Identifier: Apache-2.0
#
# Whether the CUDA target is built, and for which architectures.
include(CheckLanguage)

# OUT is TRUE where the CUDA target is wanted and nvcc works.
function(pyallreduce_find_cuda OUT)
  set(mode "${PYALLREDUCE_CUDA}")
  if(mode STREQUAL "" AND DEFINED ENV{PYALLREDUCE_CUDA})
    set(mode "$ENV{PYALLREDUCE_CUDA}")
  endif()
  if(mode STREQUAL "")
    set(mode AUTO)
  endif()
  string(TOUPPER "${mode}" mode)
  set(${OUT} FALSE PARENT_SCOPE)

  # A leading space keeps CMake from wrapping the sentence: it must be found by a search.
  if(NOT mode MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR " PYALLREDUCE_CUDA=${mode} is not one of AUTO, ON, OFF.")
  elseif(mode STREQUAL "OFF")
    message(STATUS "pyallreduce: host target alone (PYALLREDUCE_CUDA=OFF)")
    return()
  endif()

  if(NOT CMAKE_CUDA_COMPILER) # A build tree that once saw no nvcc would never look again.
    unset(CMAKE_CUDA_COMPILER CACHE)
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(${OUT} TRUE PARENT_SCOPE)
  elseif(mode STREQUAL "ON")
    message(FATAL_ERROR " PYALLREDUCE_CUDA=ON but no working nvcc was found: put nvcc on PATH or set CUDACXX.")
  else()
    message(NOTICE "pyallreduce: no nvcc found, building the host target alone. For the CUDA target put nvcc on PATH or set CUDACXX.")
  endif()
endfunction()

# OUT is the CMake list of architectures: CMAKE_CUDA_ARCHITECTURES, else CUDAARCHS, else
# TORCH_CUDA_ARCH_LIST, else the default of the nvcc at hand.
function(pyallreduce_select_architectures OUT)
  if(CMAKE_CUDA_ARCHITECTURES)
    set(list "${CMAKE_CUDA_ARCHITECTURES}")
  elseif(NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(list "$ENV{CUDAARCHS}")
  else()
    pyallreduce_convert_torch_list("$ENV{TORCH_CUDA_ARCH_LIST}" list)
    if(NOT list)
      execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE version)
      string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" ignored "${version}")
      pyallreduce_default_architectures("${CMAKE_MATCH_1}" list)
    endif()
  endif()
  message(STATUS "pyallreduce: CUDA architectures ${list}")
  set(${OUT} "${list}" PARENT_SCOPE)
endfunction()

# Code of 8.0 also runs on 8.6 and 8.9. The PTX of the newest entry without "-real" serves what
# comes later. Not "native" (fails with no GPU), not "all-major" (an older CMake then lists
# architectures that a newer nvcc has dropped).
function(pyallreduce_default_architectures VERSION OUT)
  if(VERSION VERSION_GREATER_EQUAL 12.8)
    set(${OUT} "80-real;90-real;100;120-real" PARENT_SCOPE)
  else()
    set(${OUT} "80-real;90" PARENT_SCOPE)
  endif()
endfunction()

# "8.0;9.0a 10.0+PTX" -> 80-real;90a-real;100. The list is made for torch: what is older than 8.0
# has no NVLink machine that this project serves, and is left out.
function(pyallreduce_convert_torch_list TORCH_LIST OUT)
  string(REGEX MATCHALL "[^ ;,]+" entries "${TORCH_LIST}")
  set(result "")
  foreach(entry IN LISTS entries)
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
      message(FATAL_ERROR " TORCH_CUDA_ARCH_LIST holds '${entry}': entries look like 9.0, 9.0a or 9.0+PTX.")
    elseif(CMAKE_MATCH_1 LESS 8)
      message(STATUS "pyallreduce: ${entry} of TORCH_CUDA_ARCH_LIST left out (older than 8.0)")
    elseif(CMAKE_MATCH_4)
      list(APPEND result "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}")
    else()
      list(APPEND result "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}-real")
    endif()
  endforeach()
  set(${OUT} "${result}" PARENT_SCOPE)
endfunction()
