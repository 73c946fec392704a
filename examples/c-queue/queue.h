/* A queue of integers that holds at most a given number of them. Write queue.c. */
#ifndef QUEUE_H
#define QUEUE_H

#include <stdbool.h>
#include <stddef.h>

struct queue;

/* An empty queue that holds up to `capacity` integers; NULL if that is 0 or memory is short. */
struct queue *queue_new(size_t capacity);

/* Gives back the queue's memory. NULL is allowed. */
void queue_free(struct queue *q);

/* The number of integers in the queue. */
size_t queue_size(const struct queue *q);

/* Appends a value; false, and nothing changes, if the queue is full. */
bool queue_push(struct queue *q, int value);

/* Takes the oldest value out; false, and nothing changes, if the queue is empty. */
bool queue_pop(struct queue *q, int *value);

#endif
