/* SPDX-License-Identifier: MIT */
/* ratelimit.c - a leaky bucket.
 *
 * The bucket is kept as the instant free_ns at which it will be empty.  That
 * instant may lie behind `now` by the burst at most, which is the credit that
 * idleness earns.  The price of a piece, units / speed seconds, is exact: what
 * does not make a whole nanosecond is carried over in `fraction`. */
#include "data/ratelimit.h"

#include "base/checked.h"

#define NS_PER_SEC UINT64_C(1000000000)
#define BURST_NS (NS_PER_SEC / 10)

void blkrepl__ratelimit_set(struct ratelimit *limit, uint64_t speed, uint64_t now_ns)
{
    limit->speed = speed;
    limit->free_ns = now_ns;
    limit->fraction = 0;
}

void blkrepl__ratelimit_set_burst(struct ratelimit *limit, uint64_t units)
{
    limit->burst = units;
}

uint64_t blkrepl__ratelimit_next(const struct ratelimit *limit, uint64_t now_ns)
{
    return limit->speed == 0 ? now_ns : limit->free_ns;
}

/* *x = (*x + y) mod modulus, both below it; returns the carry, 0 or 1. */
static uint64_t ratelimit_add_mod(uint64_t *x, uint64_t y, uint64_t modulus)
{
    if (*x >= modulus - y) {
        *x -= modulus - y;
        return 1;
    }
    *x += y;
    return 0;
}

/* units * NS_PER_SEC + *fraction divided by speed, for units and *fraction below
 * speed; the remainder goes to *fraction.  Where the product would not fit, it
 * is built up bit by bit, and divided as it grows. */
static uint64_t ratelimit_scale(uint64_t units, uint64_t speed, uint64_t *fraction)
{
    uint64_t ns = 0;
    uint64_t rest = 0;

    if (units <= (UINT64_MAX - *fraction) / NS_PER_SEC) {
        uint64_t product = units * NS_PER_SEC + *fraction;

        *fraction = product % speed;
        return product / speed;
    }
    for (uint64_t bit = UINT64_C(1) << 29; bit != 0; bit >>= 1) {
        ns = 2 * ns + ratelimit_add_mod(&rest, rest, speed);
        if (NS_PER_SEC & bit) {
            ns += ratelimit_add_mod(&rest, units, speed);
        }
    }
    ns += ratelimit_add_mod(&rest, *fraction, speed);
    *fraction = rest;
    return ns;
}

/* What `units` cost, with *fraction carried over; saturates. */
static uint64_t ratelimit_price(uint64_t units, uint64_t speed, uint64_t *fraction)
{
    uint64_t price;

    if (!checked_mul(units / speed, NS_PER_SEC, &price) ||
        !checked_add(price, ratelimit_scale(units % speed, speed, fraction), &price)) {
        return UINT64_MAX;
    }
    return price;
}

/* The earliest instant at which all may have been paid. */
static uint64_t ratelimit_oldest(const struct ratelimit *limit, uint64_t now_ns)
{
    uint64_t none = 0;
    uint64_t burst_ns =
        limit->burst == 0 ? BURST_NS : ratelimit_price(limit->burst, limit->speed, &none);

    return now_ns > burst_ns ? now_ns - burst_ns : 0;
}

void blkrepl__ratelimit_take(struct ratelimit *limit, uint64_t units, uint64_t now_ns)
{
    uint64_t oldest;

    if (limit->speed == 0) {
        return;
    }
    oldest = limit->free_ns < now_ns ? ratelimit_oldest(limit, now_ns) : 0;
    if (limit->free_ns < oldest) {
        limit->free_ns = oldest;
        limit->fraction = 0;
    }
    if (!checked_add(limit->free_ns, ratelimit_price(units, limit->speed, &limit->fraction),
                     &limit->free_ns)) {
        limit->free_ns = UINT64_MAX;
    }
}
