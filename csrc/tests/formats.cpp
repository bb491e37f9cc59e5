// The 16-bit formats, against double arithmetic: all 2^16 patterns, and every rounding edge between
// neighbours.
#include <math.h>

#include "../core/common.h"
#include "check.h"

using namespace greedylr;

namespace {

struct Shape {
    const char* name;
    int mantissa, bias;
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
};

// The value by definition of the format; exponent all ones is inf or NaN.
double definition(const Shape& s, unsigned pattern) {
    const unsigned exponents = 1u << (15 - s.mantissa);
    const unsigned fraction = pattern & ((1u << s.mantissa) - 1);
    const unsigned exponent = pattern >> s.mantissa & (exponents - 1);
    const double sign = pattern >> 15 ? -1.0 : 1.0;
    if (exponent == exponents - 1) return fraction ? NAN : sign * INFINITY;
    const double significand = exponent == 0 ? fraction : fraction + (1u << s.mantissa);
    return sign * ldexp(significand, int(exponent ? exponent : 1) - s.bias - s.mantissa);
}

void check_all_patterns(const Shape& s) {
    for (unsigned pattern = 0; pattern < 0x10000; ++pattern) {
        const double want = definition(s, pattern);
        const float got = s.widen(uint16_t(pattern));
        if (isnan(want)) {
            CHECK(isnan(got) && isnan(s.widen(s.narrow(got))), "%s NaN %04x became %g", s.name, pattern, got);
        } else {
            CHECK(double(got) == want && signbit(got) == signbit(want), "%s %04x: %g is not %g", s.name,
                  pattern, got, want);
            CHECK(s.narrow(got) == pattern, "%s %04x does not survive", s.name, pattern);
        }
    }
}

// Between neighbours a and b: the midpoint goes to the even pattern, one float step off it to the nearer one.
// Beyond the largest finite pattern the next one is inf, whose place in the rounding is the next power of
// two.
void check_rounding_edges(const Shape& s) {
    const unsigned inf = s.narrow(INFINITY);
    for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
        for (unsigned a = 0; a < inf; ++a) {
            const double low = definition(s, a);
            const double step = a + 1 < inf ? definition(s, a + 1) - low : low - definition(s, a - 1);
            const float middle = float(low + step / 2);  // exact: one bit more than the format has
            const unsigned even = a + (a & 1), got = s.narrow(sign ? -middle : middle);
            CHECK(got == (sign | even), "%s midpoint above %04x gives %04x", s.name, sign | a, got);
            const float below = nextafterf(middle, 0.0f), above = nextafterf(middle, INFINITY);
            CHECK(s.narrow(sign ? -below : below) == (sign | a), "%s just below, %04x", s.name, sign | a);
            CHECK(s.narrow(sign ? -above : above) == (sign | (a + 1)), "%s just above, %04x", s.name,
                  sign | a);
        }
    }
}

void check_special(const Shape& s) {
    const unsigned nans[] = {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u, 0x7f801fffu};
    for (unsigned bits : nans) CHECK(isnan(s.widen(s.narrow(float_of(bits)))), "%s NaN %08x", s.name, bits);
    CHECK(s.widen(s.narrow(3.4028235e38f)) == INFINITY, "%s: the largest float is not inf", s.name);
    CHECK(s.widen(s.narrow(-INFINITY)) == -INFINITY, "%s: -inf", s.name);
    CHECK(s.narrow(float_of(1)) == 0 && s.narrow(float_of(0x80000001u)) == 0x8000, "%s: smallest float",
          s.name);
}

}  // namespace

int main() {
    const Shape shapes[] = {{"bf16", 7, 127, bf16_to_float, float_to_bf16},
                            {"f16", 10, 15, f16_to_float, float_to_f16}};
    for (const Shape& s : shapes) {
        check_all_patterns(s);
        check_rounding_edges(s);
        check_special(s);
    }
    CHECK(is_finite(3.4e38f) && !is_finite(INFINITY) && !is_finite(-INFINITY) && !is_finite(NAN), "float");
    CHECK(is_finite(1.7e308) && !is_finite(-double(INFINITY)) && !is_finite(double(NAN)), "double");
}
