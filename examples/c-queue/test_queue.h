/* The tests' names and points, known to the grader (grade.c) and to the tests (test_queue.c). */
#ifndef TEST_QUEUE_H
#define TEST_QUEUE_H

enum problem { CORRECTNESS, ROBUSTNESS, PROBLEMS };

/* X(function, problem, points, what it says to the student) */
#define TESTS(X)                                                                      \
    X(new_queue_is_empty, CORRECTNESS, 10, "a new queue is empty")                    \
    X(first_in_first_out, CORRECTNESS, 15, "values come out in the order they went in") \
    X(size_follows, CORRECTNESS, 10, "the size follows each push and pop")            \
    X(full_is_refused, CORRECTNESS, 15, "a push to a full queue is refused")          \
    X(wraps_around, CORRECTNESS, 20, "a queue can be filled and emptied many times")  \
    X(empty_is_refused, ROBUSTNESS, 10, "a pop from an empty queue is refused")       \
    X(capacity_one, ROBUSTNESS, 10, "a queue for one value works")                    \
    X(queues_are_apart, ROBUSTNESS, 5, "two queues do not disturb each other")        \
    X(zero_and_null, ROBUSTNESS, 5, "capacity 0 gives NULL, and NULL can be freed")

#endif
