/* SPDX-License-Identifier: MIT */
/* Expected digests are the examples of NIST, and Python's hashlib for the rest. */
#include "data/sha256.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PATTERN_BYTES 4096

static unsigned char pattern[PATTERN_BYTES];

static int pattern_setup(void **state)
{
    (void)state;
    for (unsigned i = 0; i < PATTERN_BYTES; i++) {
        pattern[i] = (unsigned char)(i * 7 + i / 256);
    }
    return 0;
}

static void digest_equals(const unsigned char digest[SHA256_BYTES], const char *expected,
                          size_t bytes)
{
    char text[2 * SHA256_BYTES + 1];

    for (size_t i = 0; i < SHA256_BYTES; i++) {
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    }
    if (strcmp(text, expected) != 0) {
        fail_msg("%zu bytes: %s, not %s", bytes, text, expected);
    }
}

static void digest_of(const void *data, size_t bytes, unsigned char digest[SHA256_BYTES])
{
    struct sha256 sha;

    memset(&sha, 0xa5, sizeof sha);
    blkrepl__sha256_init(&sha);
    blkrepl__sha256_update(&sha, data, bytes);
    blkrepl__sha256_final(&sha, digest);
}

static void sha256_of_the_standard_examples(void **state)
{
    static const struct {
        const char *text;
        const char *digest;
    } examples[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn"
         "hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
         "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"},
    };
    unsigned char digest[SHA256_BYTES];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        digest_of(examples[i].text, strlen(examples[i].text), digest);
        digest_equals(digest, examples[i].digest, strlen(examples[i].text));
    }
}

static void sha256_of_a_million_letters_a(void **state)
{
    unsigned char digest[SHA256_BYTES];
    char letters[1000];
    struct sha256 sha;

    (void)state;
    memset(letters, 'a', sizeof letters);
    blkrepl__sha256_init(&sha);
    for (unsigned i = 0; i < 1000; i++) {
        blkrepl__sha256_update(&sha, letters, sizeof letters);
    }
    blkrepl__sha256_final(&sha, digest);
    digest_equals(digest, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
                  1000000);
}

static void sha256_of_lengths_around_the_end_of_a_block(void **state)
{
    static const struct {
        size_t bytes;
        const char *digest;
    } expected[] = {
        {1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
        {54, "8c71cf2dc60db40d269869fd22afbdc3264cb228ad5718f828764c1cbd9c5559"},
        {55, "576a1bf8d4478657e6dc4af9398544765c2a92cde28478b019235cfed315fc09"},
        {56, "9b20501dfd1d99161c257950f3444f3e49230c351c5c8e0943ef369f85f5205d"},
        {57, "a5534a9d0694341dfde5b1bb3d8addcb38bd46f44a629dc97b3f8fb2721b0720"},
        {63, "30b345906b493f06f69444b6521113511c242f30e29840462950035043682f1e"},
        {64, "d8bc63b4fc1156e5e7d95a418b9bf54cd3174bedbc2db40f74895349b229b3c0"},
        {65, "1ee23b0fbcaecc1aff4a9e8f1645f35ab2c8e13609cd73b68df8b5e3f63ce073"},
        {111, "d80a22461ae74d8e6944001e255f9e47eca17702b1dc987238d78e6e1ea3e342"},
        {119, "7a6589821178918ca8d9edaba5abfc1e9b2669564f4469b66885379c1530b2c8"},
        {120, "655250427d56b1b0eeb8497d21428704273458a01772d6881b65c0abac0f8a98"},
        {127, "67d79933e3c9aa8e89f481e071cfca1e9a16c09d7263b5efa3bb01f1a9f8d065"},
        {128, "54c9eb041badfd7064645067b107661fed6113197ce2dd066ba69618abd3732f"},
        {129, "5b55715b51c54661ed0cbd75ba5b00cf1ffee3b7c113a636eca613d9425116a6"},
        {4096, "d24ac44c83cce842b67a82d2f77bcbe5e41dbd555605c92832d609e29c5a997c"},
    };
    unsigned char digest[SHA256_BYTES];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        digest_of(pattern, expected[i].bytes, digest);
        digest_equals(digest, expected[i].digest, expected[i].bytes);
    }
}

/* One digest over those of all lengths up to 1024. */
static void sha256_of_every_length(void **state)
{
    unsigned char digest[SHA256_BYTES];
    struct sha256 all;

    (void)state;
    blkrepl__sha256_init(&all);
    for (size_t bytes = 0; bytes <= 1024; bytes++) {
        digest_of(pattern, bytes, digest);
        blkrepl__sha256_update(&all, digest, sizeof digest);
    }
    blkrepl__sha256_final(&all, digest);
    digest_equals(digest, "d73201abf833b96566ba96c52e683962040486b0dd40b9275b18ec817371ec31", 1025);
}

/* Each piece lies in memory of just its size, so that a sanitizer sees a read beyond it. */
static void update_from_heap(struct sha256 *sha, size_t from, size_t bytes)
{
    unsigned char *copy = bytes != 0 ? malloc(bytes) : NULL;

    if (bytes != 0) {
        assert_non_null(copy);
        memcpy(copy, pattern + from, bytes);
    }
    blkrepl__sha256_update(sha, copy, bytes);
    free(copy);
}

static void sha256_of_two_and_three_pieces_is_that_of_one(void **state)
{
    static const size_t lengths[] = {0, 1, 55, 56, 63, 64, 65, 127, 128, 129, 200};
    unsigned char whole[SHA256_BYTES];
    unsigned char pieces[SHA256_BYTES];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        digest_of(pattern, lengths[i], whole);
        for (size_t first = 0; first <= lengths[i]; first++) {
            for (size_t second = first; second <= lengths[i]; second++) {
                struct sha256 sha;

                blkrepl__sha256_init(&sha);
                update_from_heap(&sha, 0, first);
                update_from_heap(&sha, first, second - first);
                update_from_heap(&sha, second, lengths[i] - second);
                blkrepl__sha256_final(&sha, pieces);
                if (memcmp(whole, pieces, sizeof whole) != 0) {
                    fail_msg("%zu bytes in pieces at %zu and %zu", lengths[i], first, second);
                }
            }
        }
    }
}

static void sha256_of_many_pieces_is_that_of_one(void **state)
{
    unsigned char whole[SHA256_BYTES];
    unsigned char pieces[SHA256_BYTES];

    (void)state;
    digest_of(pattern, PATTERN_BYTES, whole);
    for (size_t step = 1; step <= 300; step++) {
        struct sha256 sha;

        blkrepl__sha256_init(&sha);
        for (size_t at = 0; at < PATTERN_BYTES; at += step) {
            size_t left = PATTERN_BYTES - at;

            blkrepl__sha256_update(&sha, pattern + at, step < left ? step : left);
        }
        blkrepl__sha256_final(&sha, pieces);
        if (memcmp(whole, pieces, sizeof whole) != 0) {
            fail_msg("pieces of %zu bytes", step);
        }
    }
}

/* The length in bits has 64 bits: 4 GiB and 100 bytes of zeroes, of which the 4 GiB
 * are taken as read.  That the state behind them is true, the digest shows. */
static void sha256_of_more_than_four_gib(void **state)
{
    static const uint32_t behind[8] = {
        0x8ffe48e8, 0xfe681595, 0x06d4999e, 0xe2b1ac4c,
        0x3e5b953c, 0xd5f8bb95, 0xe8082d4e, 0x8df5e99a,
    };
    static const unsigned char zeroes[100];
    unsigned char digest[SHA256_BYTES];
    struct sha256 sha;

    (void)state;
    blkrepl__sha256_init(&sha);
    memcpy(sha.state, behind, sizeof behind);
    sha.bytes = UINT64_C(1) << 32;
    blkrepl__sha256_update(&sha, zeroes, sizeof zeroes);
    blkrepl__sha256_final(&sha, digest);
    digest_equals(digest, "577d1bdcfb357ff6b5cfa8d863aba0847fea65faa1ff00f6daf1caedb30a7b3f",
                  sizeof zeroes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sha256_of_the_standard_examples),
        cmocka_unit_test(sha256_of_a_million_letters_a),
        cmocka_unit_test(sha256_of_lengths_around_the_end_of_a_block),
        cmocka_unit_test(sha256_of_every_length),
        cmocka_unit_test(sha256_of_two_and_three_pieces_is_that_of_one),
        cmocka_unit_test(sha256_of_many_pieces_is_that_of_one),
        cmocka_unit_test(sha256_of_more_than_four_gib),
    };
    return cmocka_run_group_tests(tests, pattern_setup, NULL);
}
