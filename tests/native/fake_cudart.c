/* A FAKE libcudart for tests of control flow: device memory is the host's, streams do everything at
   once, events read the clock. It counts what is allocated and frees, and says so in a file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long allocated = 0, pinned = 0, streams = 0, events = 0, graphs = 0;
static int capturing = 0;

static void tell(void) {
    const char* path = getenv("FAKE_CUDART_REPORT");
    FILE* file = path ? fopen(path, "w") : 0;
    if (!file) return;
    fprintf(file, "{\"allocated\": %ld, \"pinned\": %ld, \"streams\": %ld, \"events\": %ld, \"graphs\": %ld}\n",
            allocated, pinned, streams, events, graphs);
    fclose(file);
}

int cudaGetDeviceCount(int* count) { const char* n = getenv("FAKE_CUDART_DEVICES"); *count = n ? atoi(n) : 1; return 0; }
int cudaSetDevice(int device) { return device == 0 ? 0 : 101; }
const char* cudaGetErrorString(int code) { return code == 2 ? "out of memory" : "a fake error"; }
int cudaRuntimeGetVersion(int* version) { *version = 12060; return 0; }
int cudaDriverGetVersion(int* version) { *version = 12060; return 0; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    const char* sm = getenv("FAKE_CUDART_SM");
    if (!sm) sm = "8.7";
    *value = attribute == 75 ? atoi(sm) : attribute == 76 ? atoi(strchr(sm, '.') + 1) : 0;
    return 0;
}
int cudaMemGetInfo(size_t* free_bytes, size_t* total) { *free_bytes = *total = (size_t)8 << 30; return 0; }
int cudaGetDeviceProperties(void* properties, int device) {
    const char* name = getenv("FAKE_CUDART_GPU");
    memset(properties, 0, 1024);
    strncpy((char*)properties, name ? name : "FAKE Orin", 255);
    return 0;
}
int cudaMalloc(void** pointer, size_t size) {
    const char* limit = getenv("FAKE_CUDART_LIMIT");
    if (limit && size > (size_t)atol(limit)) return 2;
    *pointer = malloc(size); allocated++; tell(); return 0;
}
int cudaFree(void* pointer) { free(pointer); allocated--; tell(); return 0; }
int cudaHostAlloc(void** pointer, size_t size, unsigned flags) { *pointer = malloc(size); pinned++; tell(); return 0; }
int cudaFreeHost(void* pointer) { free(pointer); pinned--; tell(); return 0; }
int cudaMemcpyAsync(void* target, const void* source, size_t size, int kind, void* stream) {
    if (kind != 1 && kind != 2) return 1;
    memcpy(target, source, size);
    return 0;
}
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { *stream = malloc(8); streams++; tell(); return 0; }
int cudaStreamSynchronize(void* stream) { return stream ? 0 : 1; }
int cudaStreamDestroy(void* stream) { free(stream); streams--; tell(); return 0; }
int cudaEventCreate(void** event) { *event = malloc(sizeof(struct timespec)); events++; tell(); return 0; }
int cudaEventDestroy(void* event) { free(event); events--; tell(); return 0; }
int cudaEventRecord(void* event, void* stream) { clock_gettime(CLOCK_MONOTONIC, (struct timespec*)event); return 0; }
int cudaEventSynchronize(void* event) { return 0; }
int cudaEventElapsedTime(float* ms, void* start, void* end) {
    struct timespec *a = start, *b = end;
    *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) / 1e6f;
    return 0;
}
int cudaStreamBeginCapture(void* stream, int mode) { capturing = 1; return 0; }
int cudaStreamEndCapture(void* stream, void** graph) { capturing = 0; *graph = malloc(8); return 0; }
int cudaGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) { *executable = malloc(8); graphs++; tell(); return 0; }
int cudaGraphDestroy(void* graph) { free(graph); return 0; }
int cudaGraphLaunch(void* executable, void* stream) { return executable && stream ? 0 : 1; }
int cudaGraphExecDestroy(void* executable) { free(executable); graphs--; tell(); return 0; }
