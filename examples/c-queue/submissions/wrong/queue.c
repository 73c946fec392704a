/* The classic mistake: head == tail means empty, so one place can never be used. */
#include "queue.h"

#include <stdlib.h>

struct queue {
    size_t capacity, head, tail;
    int values[];
};

struct queue *queue_new(size_t capacity) {
    if (capacity == 0)
        return NULL;
    struct queue *q = malloc(sizeof *q + capacity * sizeof(int));
    if (q != NULL) {
        q->capacity = capacity;
        q->head = q->tail = 0;
    }
    return q;
}

void queue_free(struct queue *q) {
    free(q);
}

size_t queue_size(const struct queue *q) {
    return (q->tail + q->capacity - q->head) % q->capacity;
}

bool queue_push(struct queue *q, int value) {
    size_t next = (q->tail + 1) % q->capacity;
    if (next == q->head)
        return false;
    q->values[q->tail] = value;
    q->tail = next;
    return true;
}

bool queue_pop(struct queue *q, int *value) {
    if (q->head == q->tail)
        return false;
    *value = q->values[q->head];
    q->head = (q->head + 1) % q->capacity;
    return true;
}
