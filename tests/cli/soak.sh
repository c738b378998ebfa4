#!/usr/bin/env bash
# A short run of the soak: 300 calls with faults, undisturbed, killed three times, and by two processes at once.
exec bash "$(dirname "$0")/../net/soak.sh" 300 3 5
