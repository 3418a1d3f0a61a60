/* Gradients of distances, float32 and float64. */
#include "window.h"

enum { TOGETHER = 4 }; /* channels that share each load of the incoming gradient while it is near */

#define REAL float
#define OF(name) name
#include "distance_backward.h"
#undef REAL
#undef OF
#define REAL double
#define OF(name) name##_double
#include "distance_backward.h"
