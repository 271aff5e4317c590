# SPDX-License-Identifier: MIT
# shellcheck shell=bash
# Completion of qemu-img for bash: subcommands, options, formats and files. What exists is asked of
# the program itself (--help), so that this file never lags behind it.

_qemu_img_options() { # PROGRAM COMMAND: its long and short options
	"$1" "$2" --help 2>/dev/null | sed -nE 's/^  (-[[:alnum:]]), (--[a-z0-9-]+).*/\1 \2/p
		s/^  (--[a-z0-9-]+).*/\1/p'
}

_qemu_img_words() { # CURRENT WORD...
	local current=$1
	shift
	mapfile -t COMPREPLY < <(compgen -W "$*" -- "$current")
}

_qemu_img() {
	local program=$1 current=$2 previous=$3 command=
	local caches="none writeback writethrough directsync unsafe"

	COMPREPLY=()
	[[ $COMP_CWORD -gt 1 ]] && command=${COMP_WORDS[1]}
	if [[ -z $command ]]; then
		_qemu_img_words "$current" "$("$program" --help 2>/dev/null |
			sed -nE 's/^  ([a-z]+) - .*/\1/p') --help --version --trace"
		return
	fi
	case $command:$previous in
	*:-f | *:-O | *:--format | *:--*-format | create:-B | rebase:-B | *:-F)
		_qemu_img_words "$current" "raw qcow2"
		return
		;;
	*:--output)
		_qemu_img_words "$current" "human json"
		return
		;;
	check:-r | *:--repair)
		_qemu_img_words "$current" "leaks all"
		return
		;;
	*:--preallocation)
		_qemu_img_words "$current" "off metadata falloc full"
		return
		;;
	*:-t | *:-T | *:--cache | *:--*-cache)
		_qemu_img_words "$current" "$caches"
		return
		;;
	bench:-i | *:--aio)
		_qemu_img_words "$current" "io_uring threads native"
		return
		;;
	esac
	if [[ $current == -* ]]; then
		_qemu_img_words "$current" "--help $(_qemu_img_options "$program" "$command")"
		return
	fi
	mapfile -t COMPREPLY < <(compgen -f -- "$current")
	compopt -o filenames 2>/dev/null
}

complete -F _qemu_img qemu-img
