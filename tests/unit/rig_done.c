/* SPDX-License-Identifier: MIT */
/* The completions of rig.h, and the guest write that has one. */
#include "unit/rig.h"

static void done_fn(void *user, int result)
{
    static unsigned order;
    struct done *done = user;

    done->calls++;
    done->result = result;
    done->order = ++order;
    done->early = done->early || done->released > 0;
}

static void done_release(void *user)
{
    ((struct done *)user)->released++;
}

blkrepl_completion done_of(struct done *done)
{
    *done = (struct done){.calls = 0};
    return (blkrepl_completion){.fn = done_fn, .user = done, .release = done_release};
}

void done_assert(const struct done *done, int result)
{
    assert_int_equal(done->calls, 1);
    assert_int_equal(done->result, result);
    assert_int_equal(done->released, 1);
    assert_false(done->early);
}

void done_assert_rejected(const struct done *done)
{
    assert_int_equal(done->calls, 0);
    assert_int_equal(done->released, 1);
}

void rig_write(struct rig *rig, blkrepl_image *image, uint64_t start, uint64_t end,
               struct done *done)
{
    static unsigned char data[256 * 1024];
    static blkrepl_iovec iovs[64];
    static unsigned next;
    blkrepl_iovec *iov = &iovs[next++ % 64];
    blkrepl_completion completion = done_of(done);

    memset(data, 0xee, sizeof data);
    assert_true(end - start <= sizeof data);
    *iov = (blkrepl_iovec){.base = data, .len = (size_t)(end - start)};
    assert_int_equal(blkrepl_image_write(image, 0, start, iov, 1, 0, &completion), 0);
    rig_poll(rig);
}
