// Programmatic dependent launch, both sides. Both instructions do nothing in a kernel that was launched without the attribute.
#pragma once

#include <cute/config.hpp>

namespace prism {

// Lets the stream's next kernel start once every CTA of this grid has said so, if it was launched to. It must still wait
// for the end of this grid before it touches what this grid reads or writes.
CUTE_DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Returns once every kernel before this one has ended and its writes are visible. What a thread tells others after it, through
// barriers, is ordered behind it.
CUTE_DEVICE void await_previous_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace prism
