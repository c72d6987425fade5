// Runs a kernel over a grid.
#pragma once

#include "emulator.h"

#include <functional>

namespace emulator {
// Calls `kernel` once for each thread of the grid, with threadIdx and its like set.
void run(const char *name, Dim3 grid, Dim3 block, const std::function<void()> &kernel);
} // namespace emulator
