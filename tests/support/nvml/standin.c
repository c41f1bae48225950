/* Stands in for libnvidia-ml.so.1 on machines without a GPU: it answers what a file says, at every call anew.
 *
 * The file has one thing per line:
 *
 *   init CODE | fails CODE | driver TEXT | cuda NUMBER | hangs | events CODE
 *   gpu UUID CODE BYTES-TOTAL BYTES-FREE CELSIUS ECC-CORRECTED ECC-UNCORRECTED MAJOR MINOR NAME
 *   process UUID PID BYTES
 *   xid NUMBER UUID XID
 *
 * CODE is NVML's return value; an ECC count of -1 is memory without error correction. Signatures and meanings are those
 * of NVML's API reference.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST 16
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, SMALL = 7, TIMEOUT = 10 };

struct gpu { char uuid[96], name[96]; int code, celsius, major, minor; long long total, free, corrected, uncorrected; };
struct process { char uuid[96]; unsigned pid; long long bytes; };
struct xid { char uuid[96]; int number, xid; };
struct state {
    int init, fails, hangs, events, cuda, gpus, processes, xids;
    char driver[80];
    struct gpu gpu[MOST];
    struct process process[64];
    struct xid xid[64];
};
/* Laid out as the bindings lay them out. */
struct memory { unsigned long long total, free, used; };
struct info { unsigned pid; unsigned long long bytes; unsigned instance, compute; };
struct event { void *device; unsigned long long type, data; unsigned instance, compute; };

static char path[4096];
static int opened, calls;
static char handles[MOST][96];
static int heard;

void standin_reads(const char *from) { snprintf(path, sizeof path, "%s", from); opened = 0; heard = 0; }
int standin_calls(void) { return calls; }
int standin_opened(void) { return opened; }

static void load(struct state *s) {
    char line[512];
    do {
        memset(s, 0, sizeof *s);
        FILE *file = fopen(path[0] ? path : getenv("NVML_STANDIN"), "r");
        if (!file) { s->init = 9; return; }
        while (fgets(line, sizeof line, file)) {
            struct gpu *g = &s->gpu[s->gpus];
            struct process *p = &s->process[s->processes];
            struct xid *x = &s->xid[s->xids];
            if (sscanf(line, "init %d", &s->init) == 1 || sscanf(line, "fails %d", &s->fails) == 1) continue;
            if (sscanf(line, "driver %79s", s->driver) == 1 || sscanf(line, "cuda %d", &s->cuda) == 1) continue;
            if (sscanf(line, "events %d", &s->events) == 1) continue;
            if (!strncmp(line, "hangs", 5)) s->hangs = 1;
            if (s->gpus < MOST && sscanf(line, "gpu %95s %d %lld %lld %d %lld %lld %d %d %95[^\n]", g->uuid, &g->code,
                    &g->total, &g->free, &g->celsius, &g->corrected, &g->uncorrected, &g->major, &g->minor, g->name) == 10)
                s->gpus++;
            if (s->processes < 64 && sscanf(line, "process %95s %u %lld", p->uuid, &p->pid, &p->bytes) == 3) s->processes++;
            if (s->xids < 64 && sscanf(line, "xid %d %95s %d", &x->number, x->uuid, &x->xid) == 3) s->xids++;
        }
        fclose(file);
        if (s->hangs) usleep(5000);
    } while (s->hangs);
}

static int begin(struct state *s) { calls++; load(s); return opened ? s->fails : UNINITIALIZED; }

static struct gpu *find(struct state *s, void *device) {
    for (int i = 0; i < s->gpus; i++) if (!strcmp(s->gpu[i].uuid, (char *)device)) return &s->gpu[i];
    return NULL;
}

/* GPU is lost where it is no longer there at all, as NVML says of a handle from before. */
#define DEVICE struct state s; int code = begin(&s); if (code) return code; \
    struct gpu *g = find(&s, device); if (!g) return 15; if (g->code) return g->code

int nvmlInitWithFlags(unsigned flags) { struct state s; calls++; load(&s); if (!s.init) opened++; return s.init; }
int nvmlShutdown(void) { if (!opened) return UNINITIALIZED; opened--; return OK; }
const char *nvmlErrorString(int code) {
    static char words[40];
    snprintf(words, sizeof words, code == 15 ? "GPU is lost" : code == 18 ? "Driver/library version mismatch" : "NVML error %d", code);
    return words;
}
int nvmlSystemGetDriverVersion(char *to, unsigned size) {
    struct state s; int code = begin(&s); if (!code) snprintf(to, size, "%s", s.driver); return code;
}
int nvmlSystemGetCudaDriverVersion_v2(int *to) { struct state s; int code = begin(&s); *to = s.cuda; return code; }
int nvmlDeviceGetCount_v2(unsigned *to) { struct state s; int code = begin(&s); *to = s.gpus; return code; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **to) {
    struct state s; int code = begin(&s);
    if (code) return code;
    if (index >= (unsigned)s.gpus) return INVALID;
    if (s.gpu[index].code) return s.gpu[index].code;
    for (int i = 0; i < MOST; i++) if (!handles[i][0] || !strcmp(handles[i], s.gpu[index].uuid)) {
        strcpy(handles[i], s.gpu[index].uuid);
        *to = handles[i];
        return OK;
    }
    return INVALID;
}
int nvmlDeviceGetUUID(void *device, char *to, unsigned size) { DEVICE; snprintf(to, size, "%s", g->uuid); return OK; }
int nvmlDeviceGetName(void *device, char *to, unsigned size) { DEVICE; snprintf(to, size, "%s", g->name); return OK; }
int nvmlDeviceGetMemoryInfo(void *device, struct memory *to) {
    DEVICE; to->total = g->total; to->free = g->free; to->used = g->total - g->free; return OK;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { DEVICE; *major = g->major; *minor = g->minor; return OK; }
int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *to) { DEVICE; *to = g->celsius; return sensor ? INVALID : OK; }
int nvmlDeviceGetTotalEccErrors(void *device, unsigned kind, unsigned counter, unsigned long long *to) {
    DEVICE;
    long long count = kind ? g->uncorrected : g->corrected;
    if (count < 0 || counter) return NOT_SUPPORTED;
    *to = count;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct info *to) {
    DEVICE;
    unsigned found = 0, room = *count;
    for (int i = 0; i < s.processes; i++) if (!strcmp(s.process[i].uuid, g->uuid)) {
        if (to && found < room) to[found] = (struct info){s.process[i].pid, s.process[i].bytes, 0xFFFFFFFF, 0xFFFFFFFF};
        found++;
    }
    *count = found;
    return found > room ? SMALL : OK;
}
int nvmlEventSetCreate(void **to) { struct state s; int code = begin(&s); *to = &heard; return code ? code : s.events == 3 ? OK : s.events; }
int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *to) { DEVICE; *to = s.events == 3 ? 0 : 0x1F; return OK; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long kinds, void *set) { DEVICE; return kinds & ~0xAULL || set != &heard ? INVALID : OK; }
int nvmlEventSetWait_v2(void *set, struct event *to, unsigned milliseconds) {
    for (unsigned spent = 0;; spent += 5) {
        struct state s;
        load(&s);
        if (s.fails) return s.fails;
        for (int i = 0; i < s.xids; i++) if (s.xid[i].number > heard) {
            heard = s.xid[i].number;
            memset(to, 0, sizeof *to);
            for (int n = 0; n < MOST; n++) if (!strcmp(handles[n], s.xid[i].uuid)) to->device = handles[n];
            to->type = s.xid[i].xid ? 0x8 : 0x2;
            to->data = s.xid[i].xid;
            return OK;
        }
        if (spent >= milliseconds) return TIMEOUT;
        usleep(5000);
    }
}
int nvmlEventSetFree(void *set) { return set == &heard ? OK : INVALID; }
