// Programmatic dependent launch, the side of the kernel that others wait for. Owns no data.
#pragma once

#include <cute/config.hpp>

namespace prism {

// Lets the stream's next kernel start once every CTA of this grid has said so, if it was launched to. It must still wait
// (griddepcontrol.wait) for the end of this grid before it reads what this grid writes.
CUTE_DEVICE void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;"); }

}  // namespace prism
