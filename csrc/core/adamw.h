// AdamW, Loshchilov and Hutter 2019 (arXiv 1711.05101), Algorithm 2, with the operation order of
// torch.optim.AdamW: the scalars of one tensor, and the update of one element (A1-A6).
#pragma once

#include <math.h>

#include "common.h"
#include "control.h"

namespace greedylr {

// Scalars that one tensor's elements share, in double; rounded once to the type of the arithmetic.
template <typename T>
struct Coefficients {
    T grad_multiplier;            // negated to maximize
    T decay;                      // 1 - lr * (weight_decay + lr * decay_slope)
    T beta1, weight1;             // weight1 = 1 - beta1
    T beta2, weight2;             // weight2 = 1 - beta2
    T step_size;                  // lr / (1 - beta1^t)
    T inv_bias_correction2_sqrt;  // 1 / sqrt(1 - beta2^t)
    T eps;
};

inline namespace GREEDYLR_ISA {

// `hyper` is one row of TensorTable::hyper, `steps_taken` the steps that the tensor has already taken.
HOST_DEVICE inline Coefficients<double> coefficients(const double* hyper, double lr, double grad_multiplier,
                                                     float steps_taken) {
    const double t = double(steps_taken) + 1.0;
    const double beta1 = hyper[BETA1], beta2 = hyper[BETA2];
    Coefficients<double> k;
    k.grad_multiplier = hyper[MAXIMIZE] != 0.0 ? -grad_multiplier : grad_multiplier;
    k.decay = 1.0 - lr * (hyper[WEIGHT_DECAY] + lr * hyper[DECAY_SLOPE]);
    k.beta1 = beta1;
    k.weight1 = 1.0 - beta1;
    k.beta2 = beta2;
    k.weight2 = 1.0 - beta2;
    k.step_size = lr / (1.0 - pow(beta1, t));
    k.inv_bias_correction2_sqrt = 1.0 / sqrt(1.0 - pow(beta2, t));
    k.eps = hyper[EPS];
    return k;
}

template <typename T>
HOST_DEVICE inline Coefficients<T> rounded(const Coefficients<double>& k) {
    return {T(k.grad_multiplier),
            T(k.decay),
            T(k.beta1),
            T(k.weight1),
            T(k.beta2),
            T(k.weight2),
            T(k.step_size),
            T(k.inv_bias_correction2_sqrt),
            T(k.eps)};
}

// torch.lerp starts at the nearer end point. Asked once per tensor: a branch inside the loop defeats the
// vectoriser.
template <typename T>
HOST_DEVICE inline bool starts_at_old(const Coefficients<T>& k) {
    return k.weight1 < T(0.5);
}

// The C functions, not their std:: overloads: an inline library template instantiated for one instruction set
// could be linked into another.
HOST_DEVICE inline float square_root(float x) { return sqrtf(x); }
HOST_DEVICE inline double square_root(double x) { return sqrt(x); }

// How roots and quotients are rounded: as the compiler does it.
struct Rounded {
    template <typename T>
    HOST_DEVICE static T root(T x) {
        return square_root(x);
    }
    HOST_DEVICE static float fourth_root(float x) { return square_root(square_root(x)); }
    HOST_DEVICE static float inverse(float x) { return 1.0f / x; }
    template <typename T>
    HOST_DEVICE static T quotient(T x, T y) {
        return x / y;
    }
};

// FROM_OLD is starts_at_old(k). `vmax` is read and written only if AMSGRAD.
template <bool AMSGRAD, bool FROM_OLD, typename Rounding = Rounded, typename T>
HOST_DEVICE inline void adamw_element(T& p, T g, T& m, T& v, T& vmax, const Coefficients<T>& k) {
    // A1: clip, unscale and maximize are one factor.
    g = g * k.grad_multiplier;
    // A2: decoupled decay, before the update.
    p = p * k.decay;
    // A3: torch.lerp(m, g, weight1).
    m = FROM_OLD ? m + k.weight1 * (g - m) : g - (g - m) * k.beta1;
    // A4: two products, so that v = inf stays inf.
    v = v * k.beta2 + k.weight2 * g * g;
    // A5: a NaN wins the maximum, as in torch.maximum.
    T u = v;
    if (AMSGRAD) {
        vmax = (v > vmax || v != v) ? v : vmax;
        u = vmax;
    }
    const T denom = Rounding::root(u) * k.inv_bias_correction2_sqrt + k.eps;
    // A6
    p = p - k.step_size * Rounding::quotient(m, denom);
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
