/* SPDX-License-Identifier: MIT */
/* bits.c - a dirty bitmap, the naive way. */
#include "bits.h"

/* ---- Granules ---------------------------------------------------------------- */

uint64_t bits_granules_of(uint64_t bytes, uint32_t shift)
{
    return (bytes >> shift) + ((bytes & ((UINT64_C(1) << shift) - 1)) != 0);
}

void bits_init(struct bits *bits, uint64_t bytes, uint32_t shift)
{
    uint64_t granules = bits_granules_of(bytes, shift);

    EXPECT(granules <= BITS_GRANULES_MAX, "a model of few granules");
    bits->bytes = bytes;
    bits->shift = shift;
    bits->granules = (uint32_t)granules;
    memset(bits->wire, 0, bits_wire_bytes(bits));
}

void bits_resize(struct bits *bits, uint64_t bytes)
{
    uint64_t granules = bits_granules_of(bytes, bits->shift);
    uint32_t before = bits->granules;

    EXPECT(granules <= BITS_GRANULES_MAX, "a model of few granules");
    bits->bytes = bytes;
    if (granules < before) {
        bits_fill(bits, (uint32_t)granules, before, false);
    }
    bits->granules = (uint32_t)granules;
    if (granules > before) {
        size_t known = ((size_t)before + 7) / 8;

        memset(bits->wire + known, 0, bits_wire_bytes(bits) - known);
    }
}

bool bits_get(const struct bits *bits, uint32_t granule)
{
    return (bits->wire[granule / 8] >> granule % 8 & 1) != 0;
}

uint32_t bits_fill(struct bits *bits, uint32_t first, uint32_t end, bool dirty)
{
    uint32_t changed = 0;

    for (uint32_t i = first; i < end; i++) {
        if (bits_get(bits, i) != dirty) {
            bits->wire[i / 8] = (uint8_t)(bits->wire[i / 8] ^ 1u << i % 8);
            changed++;
        }
    }
    return changed;
}

uint32_t bits_find(const struct bits *bits, uint32_t from, uint32_t end, bool dirty)
{
    uint8_t dull = dirty ? 0 : 0xff;

    for (uint32_t i = from; i < end;) {
        if (i % 8 == 0 && bits->wire[i / 8] == dull) {
            i += 8;
        } else if (bits_get(bits, i) == dirty) {
            return i;
        } else {
            i++;
        }
    }
    return end;
}

uint32_t bits_count(const struct bits *bits)
{
    uint32_t count = 0;

    for (size_t i = 0; i < bits_wire_bytes(bits); i++) {
        for (unsigned byte = bits->wire[i]; byte != 0; byte &= byte - 1) {
            count++;
        }
    }
    return count;
}

size_t bits_wire_bytes(const struct bits *bits)
{
    return ((size_t)bits->granules + 7) / 8;
}

/* ---- Bytes ------------------------------------------------------------------- */

uint64_t bits_start(const struct bits *bits, uint32_t granule)
{
    return (uint64_t)granule << bits->shift;
}

uint64_t bits_end(const struct bits *bits, uint32_t granule)
{
    uint64_t start = bits_start(bits, granule);
    uint64_t unit = UINT64_C(1) << bits->shift;

    return bits->bytes - start < unit ? bits->bytes : start + unit;
}

uint64_t bits_dirty_bytes(const struct bits *bits)
{
    uint64_t count = bits_count(bits);
    uint32_t last = bits->granules - 1;

    if (count == 0 || !bits_get(bits, last)) {
        return count << bits->shift;
    }
    return ((count - 1) << bits->shift) + bits->bytes - bits_start(bits, last);
}

void bits_touched(const struct bits *bits, uint64_t offset, uint64_t bytes, uint32_t *first,
                  uint32_t *end)
{
    *first = (uint32_t)(offset >> bits->shift);
    *end = bytes == 0 ? *first : (uint32_t)((offset + bytes - 1) >> bits->shift) + 1;
}

bool bits_inside(const struct bits *bits, uint64_t offset, uint64_t bytes)
{
    return offset <= bits->bytes && bytes <= bits->bytes - offset;
}

static bool bits_in_units(const struct bits *bits, uint64_t offset, uint64_t bytes, uint64_t unit)
{
    return bits_inside(bits, offset, bytes) && offset % unit == 0 &&
           ((offset + bytes) % unit == 0 || offset + bytes == bits->bytes);
}

bool bits_whole(const struct bits *bits, uint64_t offset, uint64_t bytes)
{
    return bits_in_units(bits, offset, bytes, UINT64_C(1) << bits->shift);
}

uint64_t bits_part_alignment(const struct bits *bits)
{
    return UINT64_C(1) << (bits->shift < 57 ? bits->shift + 6 : 63);
}

bool bits_part(const struct bits *bits, uint64_t offset, uint64_t bytes)
{
    return bits_in_units(bits, offset, bytes, bits_part_alignment(bits));
}

size_t bits_part_bytes(const struct bits *bits, uint64_t offset, uint64_t bytes)
{
    uint32_t first;
    uint32_t end;

    bits_touched(bits, offset, bytes, &first, &end);
    return ((size_t)(end - first) + 7) / 8;
}

/* ---- Verbs ------------------------------------------------------------------- */

static bool combined(bool dirty, enum bits_verb verb, bool any, bool all)
{
    switch (verb) {
    case BITS_MERGE: return dirty || any;
    case BITS_INTERSECT: return dirty && any;
    case BITS_SUBTRACT: break;
    }
    return dirty && !all;
}

void bits_combine(struct bits *bits, const struct bits *other, enum bits_verb verb)
{
    for (uint32_t i = 0; i < bits->granules; i++) {
        uint64_t start = bits_start(bits, i);
        uint32_t from;
        uint32_t end;
        bool any;
        bool all;

        bits_touched(other, start, bits_end(bits, i) - start, &from, &end);
        any = bits_find(other, from, end, true) < end;
        all = bits_find(other, from, end, false) == end;
        bits_fill(bits, i, i + 1, combined(bits_get(bits, i), verb, any, all));
    }
}

void bits_invert(struct bits *bits)
{
    for (uint32_t i = 0; i < bits->granules; i++) {
        bits_fill(bits, i, i + 1, !bits_get(bits, i));
    }
}

void bits_load(struct bits *bits, uint64_t offset, uint64_t bytes, const uint8_t *data)
{
    uint32_t first;
    uint32_t end;

    bits_touched(bits, offset, bytes, &first, &end);
    for (uint32_t i = 0; i < end - first; i++) {
        bits_fill(bits, first + i, first + i + 1, (data[i / 8] >> i % 8 & 1) != 0);
    }
}

bool bits_next(const struct bits *bits, uint64_t offset, uint64_t bytes, bool dirty,
               uint64_t *start, uint64_t *length)
{
    uint64_t most = offset < bits->bytes ? bits->bytes - offset : 0;
    uint64_t past;
    uint32_t from;
    uint32_t end;
    uint32_t run;

    bytes = bytes < most ? bytes : most;
    if (bytes == 0) {
        return false;
    }
    bits_touched(bits, offset, bytes, &from, &end);
    from = bits_find(bits, from, end, dirty);
    if (from == end) {
        return false;
    }
    run = bits_find(bits, from, end, !dirty);
    past = bits_end(bits, run - 1);
    past = past < offset + bytes ? past : offset + bytes;
    *start = bits_start(bits, from) > offset ? bits_start(bits, from) : offset;
    *length = past - *start;
    return true;
}

/* ---- SHA-256, FIPS 180-4 by the book ----------------------------------------- */

static const uint32_t sha_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t word, unsigned by)
{
    return word >> by | word << (32 - by);
}

static void sha_block(uint32_t *state, const uint8_t *block)
{
    uint32_t w[64];
    uint32_t s[8];

    for (unsigned i = 0; i < 64; i++) {
        w[i] = i < 16 ? (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
                            (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3]
                      : w[i - 16] + w[i - 7] +
                            (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
                            (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    }
    memcpy(s, state, sizeof s);
    for (unsigned i = 0; i < 64; i++) {
        uint32_t one = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                       ((s[4] & s[5]) ^ (~s[4] & s[6])) + sha_k[i] + w[i];
        uint32_t two = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += one;
        s[0] = one + two;
    }
    for (unsigned i = 0; i < 8; i++) {
        state[i] += s[i];
    }
}

void bits_sha256(const uint8_t *data, size_t bytes, uint8_t *digest)
{
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t tail[128] = {0};
    size_t whole = bytes - bytes % 64;
    size_t rest = bytes - whole;
    size_t tail_bytes = rest < 56 ? 64 : 128;

    for (size_t at = 0; at < whole; at += 64) {
        sha_block(state, data + at);
    }
    if (rest > 0) {
        memcpy(tail, data + whole, rest);
    }
    tail[rest] = 0x80;
    for (unsigned i = 0; i < 8; i++) {
        tail[tail_bytes - 1 - i] = (uint8_t)((uint64_t)bytes * 8 >> 8 * i);
    }
    for (size_t at = 0; at < tail_bytes; at += 64) {
        sha_block(state, tail + at);
    }
    for (unsigned i = 0; i < 32; i++) {
        digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
}

/* ---- From the input ---------------------------------------------------------- */

static uint32_t draw_granule(const struct bits *bits)
{
    uint32_t units[] = {64, 4096, 262144};
    uint32_t granule;

    switch (take_below(6)) {
    case 0: granule = take_u8(); break;
    case 1: granule = bits->granules - take_below(80); break;
    case 2: granule = units[0] * take_u8() + take_below(3) - 1; break;
    case 3: granule = units[1] * take_below(80) + take_below(3) - 1; break;
    case 4: granule = units[2] + take_below(140) - 70; break;
    default: granule = take_u16(); break;
    }
    return granule <= bits->granules ? granule : granule % (bits->granules + 1);
}

uint64_t bits_draw_place(const struct bits *bits)
{
    uint32_t granule = draw_granule(bits);
    uint64_t place = granule < bits->granules ? bits_start(bits, granule) : bits->bytes;

    switch (take_below(8)) {
    case 1: place += 1; break;
    case 2: place -= place > 0; break;
    case 3: place += take_u16(); break;
    case 4: place += take_number() % (UINT64_C(1) << bits->shift); break;
    default: break;
    }
    return place < bits->bytes ? place : bits->bytes;
}

void bits_draw_range(const struct bits *bits, uint64_t *offset, uint64_t *bytes)
{
    uint64_t a = bits_draw_place(bits);
    uint64_t b;

    switch (take_below(8)) {
    case 1: b = bits->bytes; break;
    case 2: b = a < bits->bytes ? a + 1 : a; break;
    case 3:
        b = take_u16();
        b = b < bits->bytes - a ? a + b : a;
        break;
    default: b = bits_draw_place(bits); break;
    }
    *offset = a < b ? a : b;
    *bytes = a < b ? b - a : a - b;
}

void bits_draw_part(const struct bits *bits, uint64_t *offset, uint64_t *bytes)
{
    uint64_t unit = bits_part_alignment(bits);

    bits_draw_range(bits, offset, bytes);
    *bytes += *offset % unit;
    *offset -= *offset % unit;
    if ((*offset + *bytes) % unit != 0) {
        uint64_t more = unit - (*offset + *bytes) % unit;
        uint64_t room = bits->bytes - *offset - *bytes;

        *bytes += more < room ? more : room;
    }
}

void bits_draw_data(uint8_t *data, size_t bytes)
{
    uint32_t kind = take_below(6);
    uint32_t state = take_u8();
    uint8_t fill = kind == 1 ? 0xff : kind == 2 ? take_u8() : 0;

    for (size_t i = 0; i < bytes; i++) {
        state = state * 1664525u + 1013904223u;
        data[i] = kind == 3 ? (uint8_t)(state >> 24) : fill;
    }
    if (kind == 4) {
        for (size_t i = 0; i < bytes && !input_empty(); i++) {
            data[i] = take_u8();
        }
    } else if (bytes > 0 && kind != 3) {
        for (uint32_t i = take_below(4); i > 0; i--) {
            data[take_u16() % bytes] = take_u8();
        }
        data[bytes - 1] = take_chance(50) ? take_u8() : data[bytes - 1];
    }
}
