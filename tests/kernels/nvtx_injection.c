/* What a profiler loads into a process to hear its NVTX ranges: prints one line a range, indented by its depth.

   The interface is that of NVTX v3 (nvtxTypes.h, nvtxDetail/nvtxTypes.h); declared here is what ranges in domains need. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TABLE_OF_CALLBACKS = 1, MODULE_CORE2 = 5 };
enum { RANGE_PUSH = 4, RANGE_POP = 5, REGISTER_STRING = 10, CREATE_DOMAIN = 12 };
enum { MESSAGE_ASCII = 1, MESSAGE_REGISTERED = 3 };

typedef void (*Function)(void);

typedef struct {
    size_t size;
    int (*module_functions)(int module, Function ***table, unsigned int *entries);
} Callbacks;

typedef struct {
    uint16_t version, size;
    uint32_t category;
    int32_t color_type;
    uint32_t color;
    int32_t payload_type, reserved;
    uint64_t payload;
    int32_t message_type;
    const char *message;
} Attributes;

static int depth = 0;

static void *keep(const void *domain, const char *text) {
    (void)domain;
    return strdup(text);
}

static void *create(const char *name) { return strdup(name); }

static int push(const void *domain, const Attributes *range) {
    int known = range->message_type == MESSAGE_ASCII || range->message_type == MESSAGE_REGISTERED;
    fprintf(stderr, "nvtx %d %s %s\n", depth, (const char *)domain, known ? range->message : "?");
    return depth++;
}

static int pop(const void *domain) {
    (void)domain;
    return --depth;
}

int InitializeInjectionNvtx2(const void *(*get_table)(uint32_t)) {
    const Callbacks *callbacks = get_table(TABLE_OF_CALLBACKS);
    Function **table;
    unsigned int entries;
    if (!callbacks || !callbacks->module_functions(MODULE_CORE2, &table, &entries) || entries <= CREATE_DOMAIN) return 0;
    *table[RANGE_PUSH] = (Function)push;
    *table[RANGE_POP] = (Function)pop;
    *table[REGISTER_STRING] = (Function)keep;
    *table[CREATE_DOMAIN] = (Function)create;
    return 1;
}
