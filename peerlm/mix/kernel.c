/* The loops of an exchange over long fp32 vectors, each in one pass: what compiled.py calls.
 *
 * plain.py says in numpy what these do, and the results are the same to the last bit: sums of squares are
 * taken over LANES interleaved partial sums, folded by halves in double precision, a PIECE at a time; nothing
 * is contracted to fused multiply-adds (compile with -ffp-contract=off), nothing reassociated.
 *
 * Vectors may lie at any byte: parts of them come straight from the network.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 64
#define PIECE 65536
#define BLOCK 128

#if defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

/* Where vectors overlap, they are the same vector. */
#if defined(__clang__)
#define ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ELEMENTWISE _Pragma("GCC ivdep")
#else
#define ELEMENTWISE
#endif

#if defined(__GNUC__)
#define INSIDE static inline __attribute__((always_inline))
typedef float anyfloat __attribute__((aligned(1), may_alias));
#else
#define INSIDE static inline
typedef float anyfloat;
#endif

/* Adds the partial sums up and clears them. */
INSIDE double fold(float *lanes)
{
    double sums[LANES];
    for (size_t j = 0; j < LANES; j++)
        sums[j] = lanes[j];
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t j = 0; j < half; j++)
            sums[j] += sums[j + half];
    memset(lanes, 0, LANES * sizeof *lanes);
    return sums[0];
}

INSIDE size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* Sum of squares of x[n]. */
WIDE double peerlm_squares(const anyfloat *x, size_t n)
{
    double total = 0;
    float lanes[LANES] = {0};
    for (size_t start = 0; start < n; start += PIECE) {
        size_t stop = least(n, start + PIECE), whole = start + (stop - start) / LANES * LANES;
        for (size_t i = start; i < whole; i += LANES)
            for (size_t j = 0; j < LANES; j++)
                lanes[j] += x[i + j] * x[i + j];
        for (size_t i = whole; i < stop; i++)
            lanes[i - whole] += x[i] * x[i];
        total += fold(lanes);
    }
    return total;
}

/* out[n] = ours[n] - theirs[n]; squares: those of theirs, those of out. `out` may be `theirs`. */
WIDE void peerlm_difference(
    const anyfloat *ours, const anyfloat *theirs, anyfloat *out, size_t n, double *squares)
{
    float of_theirs[LANES] = {0}, of_out[LANES] = {0};
    squares[0] = squares[1] = 0;
    for (size_t start = 0; start < n; start += PIECE) {
        size_t stop = least(n, start + PIECE), whole = start + (stop - start) / LANES * LANES;
        for (size_t i = start; i < whole; i += LANES) {
            ELEMENTWISE
            for (size_t j = 0; j < LANES; j++) {
                float x = theirs[i + j], d = ours[i + j] - x;
                out[i + j] = d;
                of_theirs[j] += x * x;
                of_out[j] += d * d;
            }
        }
        for (size_t i = whole; i < stop; i++) {
            float x = theirs[i], d = ours[i] - x;
            out[i] = d;
            of_theirs[i - whole] += x * x;
            of_out[i - whole] += d * d;
        }
        squares[0] += fold(of_theirs);
        squares[1] += fold(of_out);
    }
}

/* phi[n] += scale * flow[n], and queued[n] likewise unless it is null; sum of squares of phi then. */
WIDE double peerlm_add(
    anyfloat *restrict phi, anyfloat *restrict queued, const anyfloat *restrict flow, float scale, size_t n)
{
    double total = 0;
    float lanes[LANES] = {0};
    for (size_t start = 0; start < n; start += PIECE) {
        size_t stop = least(n, start + PIECE), whole = start + (stop - start) / LANES * LANES;
        for (size_t i = start; i < whole; i += LANES) {
            for (size_t j = 0; j < LANES; j++) {
                float moved = phi[i + j] + flow[i + j] * scale;
                phi[i + j] = moved;
                lanes[j] += moved * moved;
            }
            if (queued)
                for (size_t j = 0; j < LANES; j++)
                    queued[i + j] += flow[i + j] * scale;
        }
        for (size_t i = whole; i < stop; i++) {
            float moved = phi[i] + flow[i] * scale;
            phi[i] = moved;
            lanes[i - whole] += moved * moved;
            if (queued)
                queued[i] += flow[i] * scale;
        }
        total += fold(lanes);
    }
    return total;
}

/* Random words for the rounding of the block that begins with element i: a hash of where they stand. */
INSIDE void draw(uint32_t key0, uint32_t key1, size_t i, uint16_t *dither)
{
    uint32_t words[BLOCK / 2];
    for (uint32_t j = 0; j < BLOCK / 2; j++) {
        uint32_t x = ((uint32_t)(i / 2) + j) * 0x9e3779b1u + key0;
        x = (x ^ x >> 16) * 0x7feb352du ^ key1;
        x = (x ^ x >> 15) * 0x846ca68bu;
        words[j] = x ^ x >> 16;
    }
    memcpy(dither, words, sizeof words);
}

/* One block of up to BLOCK elements as integers from 0 on; 0 if its largest is beyond `bound`. */
INSIDE int encode_block(
    const anyfloat *x, size_t count, float bound, float top, float offset, float tiniest,
    const uint16_t *dither, anyfloat *scale_out, uint8_t *q)
{
    float padded[BLOCK] = {0};
    uint32_t bits[BLOCK], largest = 0, limit;
    memcpy(padded, x, count * sizeof *padded);
    memcpy(bits, padded, sizeof bits);
    /* Without its sign a float orders as its bits do; NaN and inf come last. */
    for (size_t j = 0; j < BLOCK; j++) {
        uint32_t size = bits[j] & 0x7fffffffu;
        largest = size > largest ? size : largest;
    }
    memcpy(&limit, &bound, sizeof limit);
    if (largest > limit)
        return 0;
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    float scale = magnitude / top;
    if (scale < tiniest)
        scale = 0;
    float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    *scale_out = scale;
    for (size_t j = 0; j < BLOCK; j++) {
        float t = (float)dither[j] * 0x1p-16f;
        t = t + offset;
        t = t + padded[j] * inverse;
        q[j] = (uint8_t)(int32_t)t; /* all positive, so truncating is flooring */
    }
    return 1;
}

/* x[n] as int8 with one scale a block, rounded up or down as the keys have it. The first element of a block
 * that has one beyond `bound`, or n if none has. */
WIDE size_t peerlm_encode8(
    const anyfloat *x, size_t n, float bound, float top, float offset, float tiniest,
    uint32_t key0, uint32_t key1, anyfloat *scales, uint8_t *out)
{
    for (size_t i = 0; i < n; i += BLOCK) {
        uint8_t q[BLOCK];
        uint16_t dither[BLOCK];
        size_t count = least(BLOCK, n - i);
        draw(key0, key1, i, dither);
        if (!encode_block(x + i, count, bound, top, offset, tiniest, dither, scales + i / BLOCK, q))
            return i;
        for (size_t j = 0; j < BLOCK; j++)
            q[j] ^= 0x80; /* from offset to two's complement */
        memcpy(out + i, q, count);
    }
    return n;
}

/* The same as int4: two elements a byte, the first in the low half. */
WIDE size_t peerlm_encode4(
    const anyfloat *x, size_t n, float bound, float top, float offset, float tiniest,
    uint32_t key0, uint32_t key1, anyfloat *scales, uint8_t *out)
{
    for (size_t i = 0; i < n; i += BLOCK) {
        uint8_t q[BLOCK], packed[BLOCK / 2];
        uint16_t dither[BLOCK];
        size_t count = least(BLOCK, n - i);
        draw(key0, key1, i, dither);
        if (!encode_block(x + i, count, bound, top, offset, tiniest, dither, scales + i / BLOCK, q))
            return i;
        if (count % 2)
            q[count] = 0;
        for (size_t j = 0; j < BLOCK / 2; j++)
            packed[j] = (uint8_t)(q[2 * j] | q[2 * j + 1] << 4);
        memcpy(out + i / 2, packed, (count + 1) / 2);
    }
    return n;
}

INSIDE void take_block(const float *values, size_t count, anyfloat *out, float *lanes)
{
    memcpy(out, values, count * sizeof *values);
    for (size_t half = 0; half < BLOCK; half += LANES)
        for (size_t j = 0; j < LANES; j++)
            lanes[j] += values[half + j] * values[half + j];
}

/* out[n] from int8 and scales; its sum of squares. */
WIDE double peerlm_decode8(const anyfloat *scales, const int8_t *integers, anyfloat *out, size_t n)
{
    double total = 0;
    float lanes[LANES] = {0};
    for (size_t i = 0; i < n; i += BLOCK) {
        int8_t q[BLOCK] = {0};
        float values[BLOCK], scale = scales[i / BLOCK];
        size_t count = least(BLOCK, n - i);
        memcpy(q, integers + i, count);
        for (size_t j = 0; j < BLOCK; j++)
            values[j] = (float)q[j] * scale;
        take_block(values, count, out + i, lanes);
        if ((i + BLOCK) % PIECE == 0)
            total += fold(lanes);
    }
    return total + fold(lanes);
}

/* The same from int4. */
WIDE double peerlm_decode4(const anyfloat *scales, const uint8_t *packed, anyfloat *out, size_t n)
{
    double total = 0;
    float lanes[LANES] = {0};
    for (size_t i = 0; i < n; i += BLOCK) {
        uint8_t q[BLOCK / 2];
        float values[BLOCK], scale = scales[i / BLOCK];
        size_t count = least(BLOCK, n - i);
        memset(q, 0x88, sizeof q);
        memcpy(q, packed + i / 2, (count + 1) / 2);
        if (count % 2)
            q[count / 2] |= 0x80, q[count / 2] &= 0x8f;
        for (size_t j = 0; j < BLOCK / 2; j++) {
            values[2 * j] = (float)((int32_t)(q[j] & 15) - 8) * scale;
            values[2 * j + 1] = (float)((int32_t)(q[j] >> 4) - 8) * scale;
        }
        take_block(values, count, out + i, lanes);
        if ((i + BLOCK) % PIECE == 0)
            total += fold(lanes);
    }
    return total + fold(lanes);
}
