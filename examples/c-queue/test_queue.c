/*
 * The tests of one submission: `./tests N TOKEN` runs test N in this process.
 *
 * A test has passed only if TOKEN is written to descriptor 3 and the exit status is 0, so a
 * submission that leaves early has not passed. The grader tells time and counts points.
 */
#include "queue.h"
#include "test_queue.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            printf("  %s:%d: not so: %s\n", __FILE__, __LINE__, #condition);      \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

static struct queue *make(size_t capacity) {
    struct queue *q = queue_new(capacity);
    CHECK(q != NULL);
    return q;
}

static void new_queue_is_empty(void) {
    struct queue *q = make(4);
    CHECK(queue_size(q) == 0);
    queue_free(q);
}

static void first_in_first_out(void) {
    struct queue *q = make(8);
    int values[] = {3, -1, INT_MAX, INT_MIN, 0}, got;
    for (int i = 0; i < 5; i++)
        CHECK(queue_push(q, values[i]));
    for (int i = 0; i < 5; i++) {
        CHECK(queue_pop(q, &got));
        CHECK(got == values[i]);
    }
    queue_free(q);
}

static void size_follows(void) {
    struct queue *q = make(8);
    int got;
    for (size_t i = 1; i <= 5; i++) {
        CHECK(queue_push(q, (int)i));
        CHECK(queue_size(q) == i);
    }
    for (size_t i = 5; i-- > 0;) {
        CHECK(queue_pop(q, &got));
        CHECK(queue_size(q) == i);
    }
    queue_free(q);
}

static void full_is_refused(void) {
    struct queue *q = make(3);
    int got;
    for (int i = 0; i < 3; i++)
        CHECK(queue_push(q, i));
    CHECK(!queue_push(q, 99));
    CHECK(queue_size(q) == 3);
    CHECK(queue_pop(q, &got) && got == 0);
    queue_free(q);
}

static void wraps_around(void) {
    struct queue *q = make(5);
    int in = 0, out = 0, got;
    for (int round = 0; round < 1000; round++) {
        while (queue_push(q, in))
            in++;
        CHECK(queue_size(q) == 5);
        for (int i = 0; i <= round % 5; i++) {
            CHECK(queue_pop(q, &got));
            CHECK(got == out);
            out++;
        }
    }
    queue_free(q);
}

static void empty_is_refused(void) {
    struct queue *q = make(2);
    int got = 42;
    CHECK(!queue_pop(q, &got));
    CHECK(got == 42);
    CHECK(queue_push(q, 1) && queue_pop(q, &got));
    CHECK(!queue_pop(q, &got));
    CHECK(queue_size(q) == 0);
    queue_free(q);
}

static void capacity_one(void) {
    struct queue *q = make(1);
    int got;
    for (int i = 0; i < 3; i++) {
        CHECK(queue_push(q, i));
        CHECK(!queue_push(q, 99));
        CHECK(queue_pop(q, &got) && got == i);
    }
    queue_free(q);
}

static void queues_are_apart(void) {
    struct queue *a = make(2), *b = make(2);
    int got;
    CHECK(queue_push(a, 1) && queue_push(b, 2));
    CHECK(queue_pop(a, &got) && got == 1);
    CHECK(queue_size(b) == 1);
    queue_free(a);
    CHECK(queue_pop(b, &got) && got == 2);
    queue_free(b);
}

static void zero_and_null(void) {
    CHECK(queue_new(0) == NULL);
    queue_free(NULL);
}

int main(int argc, char **argv) {
    static void (*const tests[])(void) = {
#define FUNCTION(name, problem, points, says) name,
        TESTS(FUNCTION)
    };
    if (argc != 3)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    tests[atoi(argv[1])]();
    size_t length = strlen(argv[2]);
    return write(3, argv[2], length) == (ssize_t)length ? 0 : 1;
}
