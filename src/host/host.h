/* The host's parts: Ctrl-C, the line editor, error reports. The host embeds
 * Lua and holds no features of its own. */
#ifndef PL_HOST_HOST_H
#define PL_HOST_HOST_H
#include <stdbool.h>
#include "bind/bind.h"

/* Ctrl-C sets the interrupt flag and hooks the Lua thread that runs at that
 * moment; own coroutine.resume, wrap and close keep track of which that is.
 * Call once, after the libraries are open. */
void pl_signals_install(lua_State *L);
/* Forgets an interrupt once it has been dealt with (at the prompt). */
void pl_signals_clear(lua_State *L);

/* lua_pcall with nargs arguments and all results; on failure an error text,
 * with a traceback cut down to the user's code, is on the stack instead. */
int pl_host_call(lua_State *L, int nargs, int nresults);
/* Prints the error text on top of the stack to stderr and pops it. Returns the
 * exit status: 130 after Ctrl-C, else 1. */
int pl_host_report(lua_State *L);

/* The interactive session until end of input or :quit. */
int pl_repl(lua_State *L);

#endif
