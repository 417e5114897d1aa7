// Programmatic dependent launch, both sides. Both instructions do nothing in a kernel that was launched without the attribute.
#pragma once

#include <cute/config.hpp>

namespace prism {

// Lets the stream's next kernel start once every CTA of this grid has said so, if it was launched to. It must still wait
// for the end of this grid before it touches what this grid reads or writes, or for flags that this grid sets (then this grid says so
// only behind its own wait, and the next one ends behind it: select/sm90/long/emit.cuh).
CUTE_DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Returns once the kernel before this one has ended and its writes are visible; that one ends behind those before it. What a
// thread tells others after it, through barriers, is ordered behind it.
CUTE_DEVICE void await_previous_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

}  // namespace prism
