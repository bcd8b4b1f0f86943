/* SPDX-License-Identifier: MIT */
#include "base/list.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define ITEMS 6

struct item {
    char letter;
    struct list link;
};

struct fixture {
    struct list head;
    struct list other;
    struct item item[ITEMS];
};

static void setup(struct fixture *f)
{
    list_init(&f->head);
    list_init(&f->other);
    for (int i = 0; i < ITEMS; i++) {
        f->item[i] = (struct item){.letter = (char)('a' + i)};
    }
}

/* The list holds exactly these letters, forwards and backwards. */
static void expect(const struct list *head, const char *letters)
{
    const struct list *link = head;
    size_t count = 0;

    for (; letters[count] != '\0'; count++) {
        link = link->next;
        assert_ptr_not_equal(link, head);
        assert_true(list_linked(link));
        assert_ptr_equal(link->next->prev, link);
        assert_int_equal(CONTAINER_OF(link, struct item, link)->letter, letters[count]);
    }
    assert_ptr_equal(link->next, head);
    for (link = head; count > 0; count--) {
        link = link->prev;
        assert_int_equal(CONTAINER_OF(link, struct item, link)->letter, letters[count - 1]);
    }
    assert_ptr_equal(link->prev, head);
    assert_int_equal(list_empty(head), letters[0] == '\0');
}

static void append_range(struct list *head, struct fixture *f, int from, int to)
{
    for (int i = from; i < to; i++) {
        list_append(head, &f->item[i].link);
    }
}

static void list_is_empty_after_init(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    expect(&f.head, "");
    assert_null(list_pop(&f.head));
    assert_false(list_linked(&f.item[0].link));
}

static void list_append_and_pop_are_fifo(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    append_range(&f.head, &f, 0, 3);
    expect(&f.head, "abc");
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(list_pop(&f.head), &f.item[i].link);
        assert_false(list_linked(&f.item[i].link));
    }
    expect(&f.head, "");
    assert_null(list_pop(&f.head));
}

static void list_prepend_comes_first(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    list_prepend(&f.head, &f.item[0].link);
    expect(&f.head, "a");
    list_prepend(&f.head, &f.item[1].link);
    expect(&f.head, "ba");
    list_append(&f.head, &f.item[2].link);
    expect(&f.head, "bac");
}

static void list_remove_works_at_every_place(void **state)
{
    static const char *const left[] = {"bcd", "acd", "abd", "abc"};

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct fixture f;

        setup(&f);
        append_range(&f.head, &f, 0, 4);
        list_remove(&f.item[i].link);
        expect(&f.head, left[i]);
        assert_false(list_linked(&f.item[i].link));
        assert_null(f.item[i].link.prev);
        list_append(&f.head, &f.item[i].link);
        assert_ptr_equal(f.head.prev, &f.item[i].link);
    }
}

static void list_unlink_of_an_unlinked_link_does_nothing(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    append_range(&f.head, &f, 0, 2);
    list_unlink(&f.item[2].link);
    expect(&f.head, "ab");
    list_unlink(&f.item[0].link);
    list_unlink(&f.item[0].link);
    expect(&f.head, "b");
}

static void list_splice_moves_everything_to_the_end(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    list_splice(&f.head, &f.other);
    expect(&f.head, "");
    append_range(&f.other, &f, 2, 4);
    list_splice(&f.head, &f.other);
    expect(&f.head, "cd");
    expect(&f.other, "");
    list_splice(&f.head, &f.other);
    expect(&f.head, "cd");
    append_range(&f.other, &f, 0, 2);
    append_range(&f.other, &f, 4, 6);
    list_splice(&f.head, &f.other);
    expect(&f.head, "cdabef");
    expect(&f.other, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_is_empty_after_init),
        cmocka_unit_test(list_append_and_pop_are_fifo),
        cmocka_unit_test(list_prepend_comes_first),
        cmocka_unit_test(list_remove_works_at_every_place),
        cmocka_unit_test(list_unlink_of_an_unlinked_link_does_nothing),
        cmocka_unit_test(list_splice_moves_everything_to_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
