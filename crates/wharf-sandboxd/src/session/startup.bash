# What makes a bash say, in escape sequences that no terminal shows, when it waits for a command (B) and when one
# starts (C); `transcript.rs` reads them. The nonce is in this shell's memory alone: nothing here is exported.

# Runs last of what runs before a prompt, with the shell's standard error at 3 where it has one. The mark goes to the
# terminal itself, wherever that leads, and else to where it may. No option, function or alias of the user's disturbs it,
# and `set -x` shows nothing of it. Where `builtin` or `printf` were taken away, all is done by what is no command: `time`
# prints the mark. $1 is the status of the command before.
__wharf_count=0
__wharf_prompt() {
  __wharf_whole=
  # The second where there is no descriptor left for the first.
  builtin printf -v __wharf_whole 1 >/dev/null || builtin printf -v __wharf_whole 1
  if [[ $__wharf_whole ]]; then
    builtin local - __wharf_jobs __wharf_host __wharf_rest __wharf_directory __wharf_python __wharf_echoes __wharf_lines __wharf_number __wharf_mark
    builtin set +efkux
  fi
  __wharf_status=$1 __wharf_jobs='\j' __wharf_host='\h' __wharf_rest=${PATH-}: __wharf_python= __wharf_echoes=0 __wharf_lines=0
  if [[ ${__wharf_saved-} ]]; then __wharf_status=$__wharf_saved __wharf_saved=; fi
  while [[ $__wharf_rest ]]; do
    __wharf_directory=${__wharf_rest%%:*} __wharf_rest=${__wharf_rest#*:}
    if [[ -f $__wharf_directory/python && -x $__wharf_directory/python ]]; then
      __wharf_python=$__wharf_directory/python
      break
    fi
  done
  # As long as two processes live: what `kill` has just ended is then told of at this prompt, not at the one after.
  if [[ ${__wharf_jobs@P} != 0 ]]; then : "$(: "$(:)")"; fi
  # A count that somebody unset goes on above all before, and so does one that cannot be changed.
  __wharf_number=$((${__wharf_count:-${EPOCHREALTIME//[!0-9]/}} + 1))
  if [[ ${__wharf_count@a} == *r* ]]; then __wharf_number=${EPOCHREALTIME//[!0-9]/}; else __wharf_count=$__wharf_number; fi
  __wharf_start=$'\e]7777;@NONCE@;C\037'$__wharf_number$'\a'
  if [[ ${PS0@a} != *r* && ${PS0-} != *__wharf_start* ]]; then PS0=${PS0-}'${__wharf_start-}'; fi
  @PLAIN@
  # Keys of our own, since the user's may mean anything. Pasting also after TERM has become another one.
  if [[ $__wharf_whole ]]; then
    builtin bind '"\e[7770~": bracketed-paste-begin' '"\e[7771~": accept-line' 'set enable-bracketed-paste on'
  else
    bind '"\e[7770~": bracketed-paste-begin' '"\e[7771~": accept-line' 'set enable-bracketed-paste on' >/dev/null
  fi
  if [[ -t 3 || -t 2 ]]; then __wharf_echoes=1; fi
  if [[ ! -o emacs && ! -o vi ]]; then __wharf_lines=1; fi
  __wharf_mark=$'\e]7777;@NONCE@;B\037'$__wharf_number$'\037'$__wharf_echoes$'\037'$__wharf_status$'\037'${!-}$'\037'$EUID
  __wharf_mark=$__wharf_mark$'\037'${__wharf_host@P}$'\037'${PWD@Q}$'\037'${__wharf_python@Q}$'\037'$__wharf_lines
  __wharf_mark=$__wharf_mark$'\037'${__wharf_whole:-0}$'\a'
  if [[ ! $__wharf_whole ]]; then
    __wharf_format=${TIMEFORMAT-$'\nreal\t%3lR\nuser\t%3lU\nsys\t%3lS'}
    TIMEFORMAT=${__wharf_mark//%/%%}
    { time; } 2>/dev/tty
    TIMEFORMAT=$__wharf_format
  elif [[ $- == *r* ]]; then
    builtin printf %s "$__wharf_mark"
  else
    builtin printf %s "$__wharf_mark" >/dev/tty || builtin printf %s "$__wharf_mark" >&3 || builtin printf %s "$__wharf_mark"
  fi
  __wharf_whole=
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
