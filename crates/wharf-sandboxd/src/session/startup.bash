# What makes a bash say, in escape sequences that no terminal shows, when it waits for a command (B) and when one
# starts (C); `transcript.rs` reads them. The nonce is in this shell's memory alone: nothing here is exported.

# Runs last of what runs before a prompt, with the shell's standard error at 3 where it has one. The mark goes to the
# terminal itself, wherever that leads, and else to where it may. No option, function or alias of the user's disturbs it,
# and `set -x` shows nothing of it. $1 is the status of the command before.
__wharf_count=0
__wharf_prompt() {
  builtin local - __wharf_jobs __wharf_host __wharf_rest __wharf_directory __wharf_python __wharf_echoes __wharf_lines
  builtin set +efkux
  __wharf_status=$1 __wharf_jobs='\j' __wharf_host='\h' __wharf_rest=${PATH-}: __wharf_python= __wharf_echoes=0 __wharf_lines=0
  if [[ ${__wharf_saved-} ]]; then __wharf_status=$__wharf_saved __wharf_saved=; fi
  while [[ $__wharf_rest ]]; do
    __wharf_directory=${__wharf_rest%%:*} __wharf_rest=${__wharf_rest#*:}
    if [[ -f $__wharf_directory/python && -x $__wharf_directory/python ]]; then
      __wharf_python=$__wharf_directory/python
      break
    fi
  done
  # As long as a process lives: what `kill` has just ended is then told of at this prompt, not at the one after.
  if [[ ${__wharf_jobs@P} != 0 ]]; then : "$(:)"; fi
  # A count that somebody unset goes on above all before.
  __wharf_count=$((${__wharf_count:-${EPOCHREALTIME//[!0-9]/}} + 1))
  builtin printf -v __wharf_start '\e]7777;@NONCE@;C\037%s\a' "$__wharf_count"
  if [[ ${PS0@a} != *r* && ${PS0-} != *__wharf_start* ]]; then PS0=${PS0-}'${__wharf_start-}'; fi
  @PLAIN@
  # Also after TERM has become another one.
  builtin bind 'set enable-bracketed-paste on'
  if [[ -t 3 || -t 2 ]]; then __wharf_echoes=1; fi
  if [[ ! -o emacs && ! -o vi ]]; then __wharf_lines=1; fi
  builtin set -- '\e]7777;@NONCE@;B\037%s\037%s\037%s\037%s\037%s\037%s\037%s\037%s\037%s\a' "$__wharf_count" \
    "$__wharf_echoes" "$__wharf_status" "${!-}" "$EUID" "${__wharf_host@P}" "${PWD@Q}" "${__wharf_python@Q}" "$__wharf_lines"
  if [[ $- == *r* ]]; then
    builtin printf "$@"
  else
    builtin printf "$@" >/dev/tty || builtin printf "$@" >&3 || builtin printf "$@"
  fi
  builtin return 0
}

# What is typed before a command where readline is switched off: $? stays as it was, also for what is spelled out.
__wharf_started() {
  __wharf_left=$?
  case $- in *e*) __wharf_left=0 ;; esac
  builtin return "$__wharf_left"
}
__wharf_again() { builtin return "$__wharf_left"; }

# Reads a long command from the terminal, for which readline would take a second a megabyte. In the history it stands for
# the line that called this.
__wharf_take() {
  builtin local status=$? IFS= LC_ALL=C
  __wharf_text=
  builtin read -rs -N "$1" __wharf_text </dev/tty
  builtin history -s -- "$__wharf_text"
  case $- in *e*) builtin return 0 ;; esac
  builtin return "$status"
}

# Puts the hook behind the user's own. As an element of its own it stays when the user sets PROMPT_COMMAND anew. The place
# of its standard error is also where it notes the status, unseen by `set -x`: where that cannot be moved, as when it is
# closed, the hook runs all the same.
__wharf_install() {
  __wharf_was=${1-$?}
  case $- in *e*) __wharf_was=0 ;; esac
  builtin local - __wharf_hook
  builtin set +eku
  __wharf_hook='{ __wharf_prompt "$?"; } 3>&"$((__wharf_was=$?,2))" 2>/dev/null || __wharf_prompt "$__wharf_was"'
  if ((BASH_VERSINFO[0] > 5 || BASH_VERSINFO[0] == 5 && BASH_VERSINFO[1] > 0)); then
    case "${PROMPT_COMMAND[*]-}" in
      *__wharf_prompt*) ;;
      *) PROMPT_COMMAND[${#PROMPT_COMMAND[@]} > 0 ? ${#PROMPT_COMMAND[@]} : 1]=$__wharf_hook ;;
    esac
  else
    case ${PROMPT_COMMAND-} in
      *__wharf_prompt*) ;;
      *) PROMPT_COMMAND=$'__wharf_saved=$?\n'${PROMPT_COMMAND:+$PROMPT_COMMAND$'\n'}$__wharf_hook ;;
    esac
  fi
  builtin return "$__wharf_was"
}
