/* SPDX-License-Identifier: MIT */
/* model.c - which bytes a medium may hold. */
#include "torture.h"

/* What is compared at once. */
#define BLOCK 256

static uint64_t masks[MEDIA_MAX][MEDIUM_BYTES_MAX];
static uint8_t likelies[MEDIA_MAX][MEDIUM_BYTES_MAX];

/* What the tag leaves there is what is looked for first, unless a later write
 * was there before. */
static void model_expect(struct model *m, unsigned tag)
{
    for (uint64_t i = m->start[tag]; i < m->end[tag]; i++) {
        if ((m->mask[i] >> tag & 1) != 0) {
            m->likely[i] = model_byte(m, i, tag);
        }
    }
}

void model_init(struct model *m, uint64_t bytes, unsigned salt, bool zero)
{
    *m = (struct model){
        .bytes = bytes, .tags = 1, .salt = salt, .mask = masks[salt], .likely = likelies[salt]};
    m->kind[0] = zero ? MODEL_ZERO : MODEL_DATA;
    m->end[0] = bytes;
    for (uint64_t i = 0; i < bytes; i++) {
        m->mask[i] = 1;
    }
    model_expect(m, 0);
}

/* Different for the tags of one medium; a cluster of it is never all zero. */
uint8_t model_byte(const struct model *m, uint64_t offset, unsigned tag)
{
    if (m->kind[tag] != MODEL_DATA) {
        return 0;
    }
    return (uint8_t)(offset * 29 + (offset >> 8) * 13 + tag * 3 + m->salt * 101);
}

unsigned model_reserve(struct model *m, enum model_kind kind, uint64_t offset, uint64_t bytes)
{
    unsigned tag = m->tags++;

    REQUIRE(tag < MODEL_TAGS_MAX, "scenario: too many writes to one image for the model");
    m->kind[tag] = kind;
    m->start[tag] = offset;
    m->end[tag] = offset + bytes;
    return tag;
}

void model_go(struct model *m, unsigned tag)
{
    m->pending[tag] = true;
    for (uint64_t i = m->start[tag]; i < m->end[tag]; i++) {
        m->mask[i] |= UINT64_C(1) << tag;
    }
}

unsigned model_begin(struct model *m, enum model_kind kind, uint64_t offset, uint64_t bytes)
{
    unsigned tag = model_reserve(m, kind, offset, bytes);

    model_go(m, tag);
    return tag;
}

void model_undo(struct model *m, unsigned tag)
{
    m->pending[tag] = false;
    for (uint64_t i = m->start[tag]; i < m->end[tag]; i++) {
        m->mask[i] &= ~(UINT64_C(1) << tag);
    }
}

void model_done(struct model *m, unsigned tag)
{
    m->pending[tag] = false;
    for (uint64_t i = m->start[tag]; i < m->end[tag]; i++) {
        m->mask[i] &= ~((UINT64_C(1) << tag) - 1);
    }
    model_expect(m, tag);
}

void model_failed(struct model *m, unsigned tag)
{
    m->pending[tag] = false;
}

/* The first byte from `at` on that is not what the tags of `mask` leave there. */
static uint64_t model_differs(const struct model *m, uint64_t mask, uint64_t at, uint64_t end,
                              const uint8_t *data)
{
    unsigned tags[MODEL_TAGS_MAX], count = 0;
    bool any = false;

    for (unsigned tag = 0; tag < m->tags; tag++) {
        if ((mask >> tag & 1) != 0) {
            any = any || m->kind[tag] == MODEL_ANY;
            tags[count++] = tag;
        }
    }
    for (; at < end && !any; at++, data++) {
        unsigned i = 0;

        while (i < count && model_byte(m, at, tags[i]) != *data) {
            i++;
        }
        if (i == count) {
            return at;
        }
    }
    return end;
}

void model_check(const struct model *m, uint64_t offset, const uint8_t *data, uint64_t bytes,
                 const uint64_t *mask, const char *what)
{
    uint64_t end = offset + bytes, from = offset;

    while (from < end) {
        if (end - from >= BLOCK && memcmp(data + (from - offset), m->likely + from, BLOCK) == 0) {
            from += BLOCK;
            continue;
        }
        uint64_t allowed = m->mask[from] | (mask ? mask[from - offset] : 0), to = from + 1;

        while (to < end && to < from + BLOCK &&
               (m->mask[to] | (mask ? mask[to - offset] : 0)) == allowed) {
            to++;
        }
        uint64_t at = model_differs(m, allowed, from, to, data + (from - offset));
        REQUIRE(at == to, "%s: byte %llu is 0x%02x, which none of the writes 0x%llx left there",
                what, (unsigned long long)at, data[at - offset], (unsigned long long)allowed);
        from = to;
    }
}
