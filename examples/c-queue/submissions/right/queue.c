#include "queue.h"

#include <stdlib.h>

struct queue {
    size_t capacity, head, size;
    int values[];
};

struct queue *queue_new(size_t capacity) {
    if (capacity == 0 || capacity > ((size_t)-1 - sizeof(struct queue)) / sizeof(int))
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
    if (q->size == q->capacity)
        return false;
    q->values[(q->head + q->size++) % q->capacity] = value;
    return true;
}

bool queue_pop(struct queue *q, int *value) {
    if (q->size == 0)
        return false;
    *value = q->values[q->head];
    q->head = (q->head + 1) % q->capacity;
    q->size--;
    return true;
}
