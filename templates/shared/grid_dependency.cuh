// Programmatic dependent launch: a kernel may start while the one before it in the stream still runs, and waits here before it
// touches memory. Both instructions do nothing in a kernel that was launched without the attribute.
#pragma once

#include <cute/config.hpp>

namespace prism {

// Returns once every kernel before this one has ended and its writes are visible. What a thread tells others after it, through
// barriers, is ordered behind it.
CUTE_DEVICE void await_previous_kernels() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets the next kernel's CTAs start as soon as every CTA of this one has called it or has exited.
CUTE_DEVICE void allow_next_kernel() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace prism
