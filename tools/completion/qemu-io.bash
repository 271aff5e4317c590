# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Completion of qemu-io for bash: options, the commands behind -c, and files.

_qemu_io() {
	local program=$1 current=$2 previous=$3

	COMPREPLY=()
	case $previous in
	-c | --cmd)
		mapfile -t COMPREPLY < <(compgen -W "$("$program" -c help 2>/dev/null |
			sed -nE 's/^([a-z_]+) .*-- .*/\1/p')" -- "$current")
		return
		;;
	-f | --format)
		mapfile -t COMPREPLY < <(compgen -W "raw qcow2" -- "$current")
		return
		;;
	-t | --cache)
		mapfile -t COMPREPLY < <(compgen -W \
			"none writeback writethrough directsync unsafe" -- "$current")
		return
		;;
	-i | --aio)
		mapfile -t COMPREPLY < <(compgen -W "io_uring threads native" -- "$current")
		return
		;;
	-d | --discard)
		mapfile -t COMPREPLY < <(compgen -W "ignore unmap" -- "$current")
		return
		;;
	esac
	if [[ $current == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null |
			sed -nE 's/^  (-[[:alnum:]]), (--[a-z0-9-]+).*/\1 \2/p
				s/^  (--[a-z0-9-]+).*/\1/p')" -- "$current")
		return
	fi
	mapfile -t COMPREPLY < <(compgen -f -- "$current")
	compopt -o filenames 2>/dev/null
}

complete -F _qemu_io qemu-io
