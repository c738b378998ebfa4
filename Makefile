# Builds perilune. Settings first; then what is built from what; then the jobs.
# One Makefile for everything: no file is built without its headers known.
#
#   make study     install what is missing, build, run the study
#   make test      install what is missing, build, run all tests
#   make V=1       show the commands

# ---- settings ---------------------------------------------------------------
CC       = gcc
OPT      = -O3
CFLAGS   = $(OPT) -g
PREFIX   = /usr/local
DESTDIR  =
BUILD    = build
SANITIZE =
LUA_PKG  = lua5.4
PKGS     = $(LUA_PKG) libcjson libpcre2-8 libedit libcurl sqlite3 libmicrohttpd
# folders of the core in the order of their knowledge; a subset builds a part
DIRS     = base kernels tensor autograd text format lm store net
# sources of those folders that are left out
SKIP     =

# No -ffast-math: NaN must stay NaN and results must not depend on the compiler's
# mood. No -march=native: kernels carry their own variants (PL_CLONES).
FLAGS = -std=c11 -fno-math-errno -fno-trapping-math -fopenmp \
        -Wall -Wextra -Wno-psabi -Wshadow -Wstrict-prototypes -Isrc -I$(BUILD)
LINK  = -fopenmp -Wl,-E -Wl,--as-needed

ifneq ($(SANITIZE),)
  OPT   = -O1
  FLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined \
           -fno-omit-frame-pointer -DPL_SANITIZE
  LINK  += -fsanitize=address,undefined
endif

# asked once, and only when something is compiled: a fresh machine has no pkg-config yet
PKG_CFLAGS = $(eval PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS)))$(PKG_CFLAGS)
PKG_LIBS   = $(eval PKG_LIBS := $(shell pkg-config --libs $(PKGS)))$(PKG_LIBS)

# ---- what is built from what ------------------------------------------------
# A binary elsewhere than the top folder is told where lua/ is.
ifeq ($(BUILD),build)
  BIN = perilune
  HOST_FLAGS =
else
  BIN = $(BUILD)/perilune
  HOST_FLAGS = -DPL_LUA_DIR='"$(CURDIR)/lua"'
endif

# Kernels are compiled twice, for float and for double, except those named *_once.c; those
# of ACT_SRC, which read or write activations, once more for activations in bf16.
ONCE_SRC   = $(filter-out $(SKIP),$(foreach d,$(filter-out kernels,$(DIRS)),$(wildcard src/$(d)/*.c))) \
             $(if $(filter kernels,$(DIRS)),$(wildcard src/kernels/*_once.c))
TWICE_SRC  = $(if $(filter kernels,$(DIRS)),\
               $(filter-out %_once.c,$(wildcard src/kernels/*.c)))
ACT_SRC    = $(if $(filter kernels,$(DIRS)),$(addprefix src/kernels/,\
               attention.c bias.c gates.c logprob.c norms.c rope.c))
CORE_OBJ   = $(ONCE_SRC:src/%.c=$(BUILD)/%.o) \
             $(TWICE_SRC:src/%.c=$(BUILD)/%.f32.o) $(TWICE_SRC:src/%.c=$(BUILD)/%.f64.o) \
             $(ACT_SRC:src/%.c=$(BUILD)/%.bf16.o)
SHELL_SRC  = $(wildcard src/bind/*.c src/host/*.c)
SHELL_OBJ  = $(SHELL_SRC:src/%.c=$(BUILD)/%.o)
LIB        = $(BUILD)/libperilune.a
TEST_SRC   = $(wildcard tests/c/test_*.c)
TEST_BIN   = $(TEST_SRC:tests/c/%.c=$(BUILD)/tests/%)
# servers and load of the tests' own: mock from its files, the others one file each
MOCK_SRC   = $(wildcard tests/net/mock*.c)
MOCK_OBJ   = $(MOCK_SRC:tests/net/%.c=$(BUILD)/tests/net/%.o)
NET_SRC    = $(filter-out $(MOCK_SRC),$(wildcard tests/net/*.c))
NET_BIN    = $(NET_SRC:tests/net/%.c=$(BUILD)/tests/%)
HASH       = $(BUILD)/source_hash.h

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $(2))

FUZZ_SECONDS = 60

.PHONY: all lib tests study test test-aarch64 parity soak asan fuzz bench bench-net bench-peers train-parity docs install clean help FORCE
.DELETE_ON_ERROR:
.SUFFIXES:

all: $(BIN)

lib: $(LIB)

tests: $(TEST_BIN) $(NET_BIN) $(BUILD)/tests/mock
	@:

COMPILE = $(CC) $(CPPFLAGS) $(FLAGS) $(CFLAGS) $(PKG_CFLAGS) -MMD -MP

# Written in vector types already: -O3 unrolls it for 90 s and makes it no faster.
ifeq ($(SANITIZE),)
$(BUILD)/kernels/gemm.%.o: CFLAGS += -O2
$(BUILD)/kernels/attention.%.o: CFLAGS += -O2 -ftree-vectorize -fvect-cost-model=dynamic
endif
$(BUILD)/host/%.o: FLAGS += $(HOST_FLAGS)
# The peak is that of fused multiply-adds; -std=c11 alone would part them.
$(BUILD)/kernels/probe_once.o: FLAGS += -ffp-contract=fast
# The same for generation's kernels; the tiles of packed products are unrolled by hand.
$(BUILD)/lm/rowmath.o $(BUILD)/lm/attend.o $(BUILD)/lm/sample.o: FLAGS += -ffp-contract=fast
$(BUILD)/kernels/packed_once.o: FLAGS += -ffp-contract=fast
ifeq ($(SANITIZE),)
$(BUILD)/kernels/packed_once.o: CFLAGS += -O2
endif

$(BUILD)/%.o: src/%.c Makefile | $(HASH)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -c $< -o $@

$(BUILD)/%.f32.o: src/%.c Makefile | $(HASH)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -ffp-contract=fast -Wno-psabi -DPL_REAL=float -DPL_SUFFIX=f32 -c $< -o $@

$(BUILD)/%.f64.o: src/%.c Makefile | $(HASH)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -ffp-contract=fast -Wno-psabi -DPL_REAL=double -DPL_SUFFIX=f64 -c $< -o $@

$(BUILD)/%.bf16.o: src/%.c Makefile | $(HASH)
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -ffp-contract=fast -Wno-psabi -DPL_REAL=float -DPL_SUFFIX=bf16 -c $< -o $@

$(LIB): $(CORE_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BIN): $(SHELL_OBJ) $(LIB)
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $(LINK) $(LDFLAGS) -o $@ $(SHELL_OBJ) \
	  -Wl,--whole-archive $(LIB) -Wl,--no-whole-archive $(PKG_LIBS) -lm -lpthread

$(BUILD)/tests/%: tests/c/%.c $(LIB)
	$(call say,TEST,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -Itests/c $< -o $@ $(LINK) $(LDFLAGS) $(LIB) $(PKG_LIBS) -lm -lpthread

$(BUILD)/tests/%: tests/net/%.c
	$(call say,TEST,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) $< -o $@ $(LINK) $(LDFLAGS) $(PKG_LIBS) -lm -lpthread

$(BUILD)/tests/net/%.o: tests/net/%.c Makefile
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -c $< -o $@

$(BUILD)/tests/mock: $(MOCK_OBJ)
	$(call say,TEST,$@)
	$(Q)$(CC) $(CFLAGS) $(LINK) $(LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

# The code version of the C half: one SHA-256 over all sources, rewritten only when it changes.
$(HASH): FORCE
	@mkdir -p $(@D)
	@{ printf '#define PL_SOURCE_HASH "'; \
	   find src -name '*.[ch]' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-64 | \
	   tr -d '\n'; printf '"\n'; } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

-include $(CORE_OBJ:.o=.d) $(SHELL_OBJ:.o=.d) $(TEST_BIN:=.d) $(NET_BIN:=.d) $(MOCK_OBJ:.o=.d)

# ---- jobs -------------------------------------------------------------------
JOBS = $(shell nproc 2>/dev/null || echo 2)

study:
	@scripts/install-deps
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@./perilune run rlaif

test:
	@scripts/install-deps
	@$(MAKE) --no-print-directory -j$(JOBS) all tests
	@PL_BIN="$(abspath $(BIN))" PL_TESTS="$(BUILD)/tests" tests/run

# the kernels, cross-compiled and run in an emulator: two minutes
test-aarch64:
	@tests/aarch64.sh

asan:
	@$(MAKE) --no-print-directory -j$(JOBS) BUILD=build/asan SANITIZE=1 all tests
	@PL_TEST_QUICK=1 PL_BIN="$(CURDIR)/build/asan/perilune" PL_TESTS=build/asan/tests \
	  ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:detect_stack_use_after_return=0 \
	  LSAN_OPTIONS=suppressions=$(CURDIR)/tests/leaks.supp:print_suppressions=0 \
	  UBSAN_OPTIONS=print_stacktrace=1 tests/run c lua

# Other people's clients and servers against ours, on loopback: the only job that uses Python.
# llama-cpp-python compiles for some minutes; where it cannot, its tests are skipped.
PARITY_VENV = $(or $(PERILUNE_VENV),$(BUILD)/parity-venv)

$(BUILD)/parity-venv/ready:
	$(call say,VENV,$(@D))
	@python3 -m venv $(@D)
	@$(@D)/bin/pip install -q openai anthropic gguf numpy
	@if $(@D)/bin/pip install -q 'llama-cpp-python[server]' >$(@D)/llama.log 2>&1; \
	  then touch $@; else echo '  llama-cpp-python did not install: $(@D)/llama.log'; fi

parity:
	@scripts/install-deps $(if $(PERILUNE_VENV),,python3 python3-venv python3-dev g++ cmake)
	@$(MAKE) --no-print-directory -j$(JOBS) all $(BUILD)/tests/mock \
	  $(if $(PERILUNE_VENV),,$(BUILD)/parity-venv/ready)
	@PL_BIN="$(abspath $(BIN))" PL_MOCK="$(abspath $(BUILD)/tests/mock)" \
	  PERILUNE_VENV="$(abspath $(PARITY_VENV))" tests/parity/run.sh

$(BUILD)/fuzz: tests/fuzz/fuzz.c tests/fuzz/fuzz.h $(LIB)
	$(call say,FUZZ,$@)
	$(Q)$(COMPILE) $< -o $@ $(LINK) $(LDFLAGS) $(LIB) $(PKG_LIBS) -lm -lpthread

# mutated JSON, tokenizer and safetensors files against the readers; FUZZ_SECONDS=600 for longer
fuzz:
	@$(MAKE) --no-print-directory -j$(JOBS) BUILD=build/asan SANITIZE=1 build/asan/fuzz
	@build/asan/fuzz $(FUZZ_SECONDS) $$(date +%s)

# bf16 against f32 in a whole training, minutes; PL_SHARED names the folder with the text
train-parity: all
	@$(abspath $(BIN)) scripts/train-parity.lua

# speed against this machine's peak; BENCH="sft --json" chooses, BENCH_JSON=FILE keeps the figures
bench: all
	@$(abspath $(BIN)) scripts/bench.lua $(BENCH)

# Ours and others' in turn: PyTorch 2.13 for CPUs and llama.cpp, in a Python environment of its own
# (PERILUNE_BENCH_VENV names one that is there). BENCH="gen --quick" chooses.
BENCH_VENV = $(or $(PERILUNE_BENCH_VENV),$(BUILD)/bench-venv)

$(BUILD)/bench-venv/ready:
	$(call say,VENV,$(@D))
	@python3 -m venv $(@D)
	@$(@D)/bin/pip install -q torch==2.13.0 numpy gguf
	@$(@D)/bin/pip install -q llama-cpp-python >$(@D)/llama.log 2>&1 || \
	  echo '  llama-cpp-python did not install, its rows stay empty: $(@D)/llama.log'
	@touch $@

bench-peers: all
	@scripts/install-deps $(if $(PERILUNE_BENCH_VENV),,python3 python3-venv python3-dev g++ cmake)
	@$(MAKE) --no-print-directory $(if $(PERILUNE_BENCH_VENV),all,$(BUILD)/bench-venv/ready)
	@PERILUNE_BENCH_VENV="$(abspath $(BENCH_VENV))" $(abspath $(BIN)) scripts/bench-peers.lua $(BENCH)

# clients of AI services against the mock services, and serve under load
bench-net:
	@scripts/install-deps
	@$(MAKE) --no-print-directory -j$(JOBS) all tests
	@PL_BIN="$(abspath $(BIN))" PL_TESTS="$(abspath $(BUILD)/tests)" $(abspath $(BIN)) scripts/bench-net.lua

# 10,000 calls with faults, undisturbed, killed 20 times, and by two processes at once
soak:
	@scripts/install-deps
	@$(MAKE) --no-print-directory -j$(JOBS) all tests
	@PL_BIN="$(abspath $(BIN))" PL_TESTS="$(abspath $(BUILD)/tests)" tests/net/soak.sh 10000 20

docs: all
	@$(abspath $(BIN)) scripts/docs.lua

install: all
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/perilune"
	install -m 755 $(BIN) "$(DESTDIR)$(PREFIX)/bin/perilune"
	rm -rf "$(DESTDIR)$(PREFIX)/share/perilune/lua"
	cp -R lua "$(DESTDIR)$(PREFIX)/share/perilune/lua"

clean:
	rm -rf build perilune

help:
	@echo 'make            build ./perilune'
	@echo 'make study      install what is missing, build, run the study (./perilune run rlaif)'
	@echo 'make test       install what is missing, build, run all tests'
	@echo 'make train-parity  trains in bf16 and f32 to the same loss (minutes)'
	@echo 'make parity     official clients and other servers against ours (needs python3)'
	@echo 'make soak       10,000 calls to a faulty service, killed 20 times: no answer and no money lost'
	@echo 'make test-aarch64  the kernels under an emulated AArch64 (needs gcc-aarch64-linux-gnu, qemu-user)'
	@echo 'make asan       C and Lua tests under AddressSanitizer and UBSan'
	@echo 'make fuzz       mutated files against the readers, FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make bench      speed against what this machine can do'
	@echo 'make bench-peers  ours and PyTorch, llama.cpp in turn (needs python3)'
	@echo 'make bench-net  what calls to services cost, and serve under load'
	@echo 'make docs       regenerate lua/meta and the tables of the README'
	@echo 'make install    to PREFIX=$(PREFIX), below DESTDIR if set'
	@echo 'make clean      remove what was built (runs/ stays)'
	@echo 'settings: CC CFLAGS OPT PREFIX DESTDIR BUILD LUA_PKG V=1'
