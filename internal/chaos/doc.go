// Package chaos breaks a real fleet in every way that one machine can, while foreign
// clients use it over each protocol, and judges what became of all that was acknowledged.
//
// Everything is in namespaces of the run's own: each node has its address and its disk, and
// when the run ends, however it does, the kernel removes processes, links and mounts with
// it. It takes root. [Run] is what is outside, and [Inside] what is inside.
package chaos
