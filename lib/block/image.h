/* SPDX-License-Identifier: MIT */
/* image.h - an image: a leaf, the taps on its writes, and its users.
 *
 * A tap is how a job sees the writes of an image.  Every write passes the taps
 * before it is given to the backend (or gets its GO); a tap may let it pass,
 * make it wait, or fail it.  A tap does not see writes that were given before
 * it was attached: they are concurrent with its point in time.
 *
 * refs: the host's handle, every guest request and bracket, every job.  When
 * the last is gone the leaf's backend is closed and the image freed. */
#ifndef BLKREPL_BLOCK_IMAGE_H
#define BLKREPL_BLOCK_IMAGE_H

#include "block/leaf.h"
#include "block/record.h"
#include <libblkrepl/image.h>

struct blkrepl_throttle;
struct guest;
struct quick_stripe;
struct tap;

enum tap_answer {
    TAP_PASS,
    TAP_WAIT, /* the guest is parked (tap_parked) and will be woken */
    TAP_SKIP, /* a discard that is better not done */
    TAP_FAIL  /* guest->tap_error says why */
};

struct tap {
    struct list link;
    uint64_t attached_at; /* instant */
    uint64_t bit;         /* tells it from the taps attached before and after it */
    /* Look at start..end of a write before it is given. */
    enum tap_answer (*before)(struct tap *tap, struct guest *guest, uint64_t start, uint64_t end);
    /* The guest parked here waits no more: it was cancelled, or another tap has
     * failed it.  It is not parked afterwards. */
    void (*forget)(struct tap *tap, struct guest *guest);
};

struct blkrepl_image {
    /* Set once. */
    struct blkrepl_context *ctx;
    struct leaf *leaf;
    uint64_t id;
    bool read_only;
    bool discards; /* though it is read-only */
    void *user;
    void (*release)(void *user);
    char name[BLKREPL_NAME_MAX + 1];
    /* Changed under the lock. */
    struct list taps;
    struct list bitmaps;    /* struct blkrepl_bitmap.image_link, in the order of ids */
    uint32_t taps_attached; /* ever */
    uint32_t refs;
    uint32_t requests;  /* guest requests and brackets not yet ended */
    uint32_t throttled; /* of these, the ones that wait for its throttle */
    uint32_t writes;    /* of these, the ones that change the medium */
    uint32_t jobs_reading;
    uint32_t jobs_writing;
    struct blkrepl_throttle *throttle; /* of guest I/O; NULL: none */
    bool open;                         /* the host has its handle */
    struct list guests;                /* struct guest.image_link: requests of the slow way */
    uint32_t slow_left;                /* of these, how many more before it may go the quick way */
    struct record record;              /* see there for its locks */
    /* Each has its own lock: see quick.h. */
    struct quick_stripe *stripes;
    uint32_t stripes_made; /* while the image is made and freed */
    struct callback gone;  /* runs the release of user */
};

/* Make an image over a leaf; the caller's lock is not held.  The image owns the
 * leaf if it succeeds.
 * Returns: 0; -EINVAL; -ENOMEM; -ESHUTDOWN; BLKREPL_ERR_VERSION. */
int blkrepl__image_create(struct blkrepl_context *ctx, struct leaf *leaf,
                          const blkrepl_image_options *options, blkrepl_image **out);

/* The release of an open that fails. */
void blkrepl__image_options_release(const struct blkrepl_context *ctx,
                                    const blkrepl_image_options *options);

/* With the lock held. */
void blkrepl__image_ref(struct blkrepl_image *image);
void blkrepl__image_unref(struct blkrepl_image *image);

/* Attach a tap at this instant; detach it. */
void blkrepl__image_attach(struct blkrepl_image *image, struct tap *tap);
void blkrepl__image_detach(struct tap *tap);

static inline uint64_t image_bytes(const struct blkrepl_image *image)
{
    return image->leaf->port.info.bytes;
}

#endif
