// Numbers as a GPU makes them: conversions of 16-bit types, turned bits, sines of multiples of pi.
#include "../device.h"

unsigned __brev(unsigned x) {
    unsigned turned = 0;
    for (int bit = 0; bit < 32; bit++) turned |= (x >> bit & 1) << (31 - bit);
    return turned;
}

void sincos_pi(float x, float& s, float& c) {
    const double turned = std::remainder(static_cast<double>(x), 2.0) * 3.14159265358979323846;
    s = static_cast<float>(std::sin(turned));
    c = static_cast<float>(std::cos(turned));
}

float to_float(half16 x) {
    const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    float size = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return x.bits >> 15 ? -size : size;
}

template <>
bf16 from_float<bf16>(float f) {
    const uint32_t bits = __float_as_uint(f);
    if (f != f) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
half16 from_float<half16>(float f) {
    const uint16_t sign = static_cast<uint16_t>(__float_as_uint(f) >> 16 & 0x8000);
    if (f != f) return {0x7fff};
    const float size = std::fabs(f);
    if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
    int exponent = -14;  // of the unit: below 2^-14 numbers are 2^-24 apart
    if (size >= 6.103515625e-5f) std::frexp(size, &exponent), exponent--;
    const int units = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));  // ties to even
    return {static_cast<uint16_t>(sign + ((exponent + 14) << 10) + units)};
}
