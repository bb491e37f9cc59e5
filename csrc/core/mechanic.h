// Mechanic, a tuner: Cutkosky, Defazio and Mehta (arXiv 2306.00144), in the form of optax. A factor S on the
// sum of all updates is learned from gradients (M1-M6), and each parameter x = x0 - S * D is moved by it
// (M7-M9). What is kept of a parameter is its offset, x0 - x, and the S that wrote it last.
#pragma once

#include "adamw.h"

namespace greedylr {
inline namespace GREEDYLR_ISA {

// The tuner's values in the control vector, behind the ring.
struct Tuner {
    int n;  // learners
    double decay, init, eps;
    const double* beta;
    double *s, *m, *v, *r;  // [n] each, as beta
};

// `at`: those values, where they are.
HOST_DEVICE inline Tuner tuner_of(const double* c, double* at) {
    const int n = int(c[slot::tuner_betas]);
    return {n, at[0], at[1], at[2], at + 3, at + 3 + n, at + 3 + 2 * n, at + 3 + 3 * n, at + 3 + 4 * n};
}

HOST_DEVICE inline double tuner_eps(const double* c) { return c[int64_t(c[slot::tuner_begin]) + 2]; }

HOST_DEVICE inline double sum_of_shares(const Tuner& t) {
    double sum = 0.0;
    for (int i = 0; i < t.n; ++i) sum += t.s[i];
    return sum;
}

// Between measurement and update, after the clip: the S that the update is made with. Nothing changes in a
// step that is skipped.
HOST_DEVICE inline void run_tuner(double* c, double* values) {
    if (c[slot::skip] != 0.0) return;
    const Tuner t = tuner_of(c, values);
    // M1
    const double grad_norm = sqrt(c[slot::grad_sq_sum]) * c[slot::grad_multiplier];
    const double decay = t.decay * sum_of_shares(t) * grad_norm / (sqrt(c[slot::param_sq_sum]) + t.eps);
    // M2: a product that is not finite teaches nothing.
    const double h = c[slot::grad_multiplier] * c[slot::grad_moved_sum] + decay * c[slot::param_moved_sum];
    if (!is_finite(h)) return;
    for (int i = 0; i < t.n; ++i) {
        // M3: by the m of the step before.
        const double above = h > -t.m[i] ? h : -t.m[i];
        const double clipped = above < t.m[i] ? above : t.m[i];
        // M4
        const double faded = t.beta[i] * t.m[i], size = fabs(h) + t.eps;
        t.m[i] = faded > size ? faded : size;
        t.v[i] = t.beta[i] * t.beta[i] * t.v[i] + h * h;
        // M5
        t.r[i] = t.beta[i] * t.r[i] + clipped * t.s[i];
        const double wealth = t.init / double(t.n) * t.m[i] + (t.r[i] > 0.0 ? t.r[i] : 0.0);
        // M6
        t.s[i] = wealth / (sqrt(t.v[i]) + t.eps);
    }
    c[slot::tuner_scale] = sum_of_shares(t);
}

HOST_DEVICE inline void run_tuner(double* c) { run_tuner(c, c + int64_t(c[slot::tuner_begin])); }

// The S of the last step that wrote a tensor.
HOST_DEVICE inline double& written_at(const TensorTable& t, int64_t tensor) {
    return *reinterpret_cast<double*>(t.ptrs[WRITTEN_AT * t.n_tensors + tensor]);
}

// Share of a tensor in the sums of (gradient, parameter) times (x0 - x) / (S + eps), of which its elements
// have (gradient, parameter) times offset.
struct DirectionWeight {
    double grad, param;
};

HOST_DEVICE inline DirectionWeight direction_weight(const TensorTable& t, int64_t tensor) {
    const double weight = t.norm_weight[tensor] / (written_at(t, tensor) + tuner_eps(t.control));
    return {t.hyper[t.group[tensor] * HYPER_COUNT + MAXIMIZE] != 0.0 ? -weight : weight, weight};
}

}  // namespace GREEDYLR_ISA

// Scalars of the move of one tensor's elements, in double; rounded once to the type of the arithmetic.
template <typename T>
struct Moves {
    T decay;    // lr * weight_decay
    T rescale;  // 1 - S / (the S that wrote it last + eps)
    T scale;    // S
};

inline namespace GREEDYLR_ISA {

// `hyper` as for `coefficients`.
HOST_DEVICE inline Moves<double> moves_of(const double* c, const double* hyper, double lr, double before) {
    const double scale = c[slot::tuner_scale];
    const double weight_decay = hyper[WEIGHT_DECAY] + lr * hyper[DECAY_SLOPE];
    return {lr * weight_decay, 1.0 - scale / (before + tuner_eps(c)), scale};
}

template <typename T>
HOST_DEVICE inline Moves<T> rounded(const Moves<double>& by) {
    return {T(by.decay), T(by.rescale), T(by.scale)};
}

// `step` is what adamw_element makes of a parameter of 0: the update without weight decay.
template <typename T>
HOST_DEVICE inline void move_element(T& p, T& offset, T step, const Moves<T>& by) {
    // M7: with the weight decay, which is relative to the parameter.
    const T update = step - by.decay * p;
    // M8: x0 - S * ((x0 - x) / (S' + eps) - update) - x.
    const T move = by.rescale * offset + by.scale * update;
    // M9
    p = p + move;
    offset = offset - move;
}

}  // namespace GREEDYLR_ISA
}  // namespace greedylr
