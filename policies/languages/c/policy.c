// The policy `affinity` in C: a terminal goes to the hosts of its own team, where these have room.
//
// Ranks as policies/affinity does, whose README says how. Nothing is freed: each question has an instance of its own.

#include <stdlib.h>
#include <string.h>

#include "placement_policy.h"

typedef exports_understudy_policy_placement_request_t request_t;
typedef exports_understudy_policy_placement_hosts_t hosts_t;
typedef exports_understudy_policy_placement_list_parameter_t parameters_t;
typedef exports_understudy_policy_placement_list_pick_t picks_t;
typedef exports_understudy_policy_placement_pick_t pick_t;
typedef placement_policy_string_t string_t;

// Stands for no label: a dictionary is never this long.
static const uint32_t NO_LABEL = UINT32_MAX;

typedef struct {
    uint32_t row;
    bool member;
    bool elsewhere;
    uint64_t free;
} candidate_t;

static bool equal(string_t a, string_t b) {
    return a.len == b.len && memcmp(a.ptr, b.ptr, a.len) == 0;
}

static string_t text(const char *chars) {
    return (string_t){.ptr = (uint8_t *)chars, .len = strlen(chars)};
}

// The parts, one after the other.
static string_t join(const string_t *parts, size_t n) {
    size_t len = 0;
    for (size_t i = 0; i < n; i++) len += parts[i].len;
    string_t whole = {.ptr = malloc(len > 0 ? len : 1), .len = 0};
    if (whole.ptr == NULL) abort();
    for (size_t i = 0; i < n; i++) {
        memcpy(whole.ptr + whole.len, parts[i].ptr, parts[i].len);
        whole.len += parts[i].len;
    }
    return whole;
}

// printf would import standard output.
static string_t decimal(uint64_t number) {
    char *digits = malloc(20), *end = digits + 20, *at = end;
    if (digits == NULL) abort();
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    return (string_t){.ptr = (uint8_t *)at, .len = (size_t)(end - at)};
}

static bool label_key(const parameters_t *parameters, string_t *key, string_t *error) {
    *key = text("team");
    for (size_t i = 0; i < parameters->len; i++) {
        if (!equal(parameters->ptr[i].key, text("label"))) {
            const string_t parts[] = {text("parameter '"), parameters->ptr[i].key, text("' is unknown: use label")};
            *error = join(parts, 3);
            return false;
        }
        *key = parameters->ptr[i].value;
    }
    return true;
}

static uint32_t terminal_label(const request_t *request, const hosts_t *hosts, string_t key) {
    for (size_t i = 0; i < request->terminal_labels.len; i++) {
        uint32_t id = request->terminal_labels.ptr[i];
        if (equal(hosts->labels.ptr[id].key, key)) return id;
    }
    return NO_LABEL;
}

static bool takes_idle(const request_t *request) {
    return request->purpose == EXPORTS_UNDERSTUDY_POLICY_PLACEMENT_PURPOSE_PRIMARY ||
           request->purpose == EXPORTS_UNDERSTUDY_POLICY_PLACEMENT_PURPOSE_WARM_BACKUP;
}

static bool has_idle(const request_t *request, const hosts_t *hosts, uint32_t row) {
    if (!request->template_.is_some) return false;
    for (uint32_t i = hosts->idle_start.ptr[row]; i < hosts->idle_start.ptr[row + 1]; i++) {
        if (hosts->idle_template.ptr[i] == request->template_.val && hosts->idle_count.ptr[i] > 0) return true;
    }
    return false;
}

static bool suits(const request_t *request, const hosts_t *hosts, uint32_t row) {
    uint8_t state = hosts->state.ptr[row];
    bool takes_work = state == EXPORTS_UNDERSTUDY_POLICY_PLACEMENT_HOST_STATE_READY ||
                      state == EXPORTS_UNDERSTUDY_POLICY_PLACEMENT_HOST_STATE_DEGRADED;
    bool has_room = hosts->free_vcpus.ptr[row] >= request->vcpus &&
                    hosts->free_memory_mib.ptr[row] >= request->memory_mib;
    return takes_work && (has_room || (takes_idle(request) && has_idle(request, hosts, row)));
}

static bool has_member(const request_t *request, uint32_t row) {
    for (size_t i = 0; i < request->members.len; i++) {
        if (request->members.ptr[i].host == row) return true;
    }
    return false;
}

static bool has_label(const hosts_t *hosts, uint32_t row, uint32_t label) {
    for (uint32_t i = hosts->label_start.ptr[row]; i < hosts->label_start.ptr[row + 1]; i++) {
        if (hosts->label_ids.ptr[i] == label) return true;
    }
    return false;
}

// Hosts without a member of the node, then those with the label, then the emptiest, then the order of rows.
static int compare(const void *one, const void *other) {
    const candidate_t *a = one, *b = other;
    if (a->member != b->member) return a->member ? 1 : -1;
    if (a->elsewhere != b->elsewhere) return a->elsewhere ? 1 : -1;
    if (a->free != b->free) return a->free > b->free ? -1 : 1;
    return a->row > b->row ? 1 : -1;
}

static pick_t pick(const request_t *request, const candidate_t *candidate, string_t key) {
    pick_t pick = {.host = candidate->row};
    pick.reason.is_some = request->reasons;
    if (request->reasons) {
        const string_t parts[] = {
            text(candidate->elsewhere ? "not of the terminal's " : "of the terminal's "),
            key, text(", "), decimal(candidate->free), text(" MiB free"),
        };
        pick.reason.val = join(parts, 5);
    }
    return pick;
}

bool exports_understudy_policy_placement_place(request_t *request, hosts_t *hosts, parameters_t *parameters,
                                               picks_t *picks, string_t *error) {
    string_t key;
    if (!label_key(parameters, &key, error)) return false;
    uint32_t label = terminal_label(request, hosts, key);

    uint32_t rows = (uint32_t)hosts->state.len;
    candidate_t *candidates = malloc((rows + 1) * sizeof *candidates);
    if (candidates == NULL) abort();
    size_t n = 0;
    for (uint32_t row = 0; row < rows; row++) {
        if (!suits(request, hosts, row)) continue;
        candidates[n++] = (candidate_t){
            .row = row,
            .member = has_member(request, row),
            .elsewhere = label == NO_LABEL || !has_label(hosts, row, label),
            .free = hosts->free_memory_mib.ptr[row],
        };
    }
    qsort(candidates, n, sizeof *candidates, compare);

    picks->len = n < request->wanted ? n : request->wanted;
    picks->ptr = malloc((picks->len + 1) * sizeof *picks->ptr);
    if (picks->ptr == NULL) abort();
    for (size_t i = 0; i < picks->len; i++) picks->ptr[i] = pick(request, &candidates[i], key);
    return true;
}
