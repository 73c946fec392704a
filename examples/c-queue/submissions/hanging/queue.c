/* Waits for room and for values, as a queue between threads would. Here nobody ever comes. */
#include "queue.h"

#include <stdlib.h>

struct queue {
    size_t capacity, head;
    volatile size_t size;
    int values[];
};

struct queue *queue_new(size_t capacity) {
    if (capacity == 0)
        return NULL;
    struct queue *q = malloc(sizeof *q + capacity * sizeof(int));
    if (q != NULL) {
        q->capacity = capacity;
        q->head = q->size = 0;
    }
    return q;
}

void queue_free(struct queue *q) {
    free(q);
}

size_t queue_size(const struct queue *q) {
    return q->size;
}

bool queue_push(struct queue *q, int value) {
    while (q->size == q->capacity)
        ;
    q->values[(q->head + q->size++) % q->capacity] = value;
    return true;
}

bool queue_pop(struct queue *q, int *value) {
    while (q->size == 0)
        ;
    *value = q->values[q->head];
    q->head = (q->head + 1) % q->capacity;
    q->size--;
    return true;
}
