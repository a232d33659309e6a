# What makes a bash say, in escape sequences that no terminal shows, when it waits for a command (B) and when one
# starts (C); `transcript.rs` reads them. The nonce is in this shell's memory alone: nothing here is exported.

# Runs last of what runs before a prompt, with the shell's standard error at 3. The mark goes to the terminal itself,
# wherever that leads. No option of the user's disturbs it, and `set -x` shows nothing of it.
__wharf_prompt() {
  local - __wharf_status=$?
  set +efux
  local __wharf_jobs='\j' __wharf_host='\h' rest=${PATH-}: directory python= echoes=0
  if [[ ${__wharf_saved-} ]]; then __wharf_status=$__wharf_saved __wharf_saved=; fi
  while [[ $rest ]]; do
    directory=${rest%%:*} rest=${rest#*:}
    if [[ -f $directory/python && -x $directory/python ]]; then
      python=$directory/python
      break
    fi
  done
  # As long as a process lives: what `kill` has just ended is then told of at this prompt, not at the one after.
  if [[ ${__wharf_jobs@P} != 0 ]]; then : "$(:)"; fi
  __wharf_count=$((${__wharf_count:-0} + 1))
  printf -v __wharf_start '\e]7777;@NONCE@;C\037%s\a' "$__wharf_count"
  case ${PS0-} in
    *__wharf_start*) ;;
    *) PS0=${PS0-}'${__wharf_start-}' ;;
  esac
  @PLAIN@
  # Also after TERM has become another one.
  bind 'set enable-bracketed-paste on'
  if [[ -t 3 ]]; then echoes=1; fi
  set -- "$__wharf_count" "$echoes" "$__wharf_status" "${!-}" "$EUID" "${__wharf_host@P}" "${PWD@Q}" "${python@Q}"
  printf '\e]7777;@NONCE@;B\037%s\037%s\037%s\037%s\037%s\037%s\037%s\037%s\a' "$@" >/dev/tty ||
    printf '\e]7777;@NONCE@;B\037%s\037%s\037%s\037%s\037%s\037%s\037%s\037%s\a' "$@" >&3
  return 0
}

# Reads a long command from the terminal, for which readline would take a second a megabyte. In the history it stands for
# the line that called this.
__wharf_take() {
  local status=$? IFS= LC_ALL=C
  __wharf_text=
  read -rs -N "$1" __wharf_text </dev/tty
  history -s -- "$__wharf_text"
  case $- in *e*) return 0 ;; esac
  return "$status"
}

# Puts the hook behind the user's own. As an element of its own it stays when the user sets PROMPT_COMMAND anew.
__wharf_install() {
  local status=${1-$?} hook='{ __wharf_prompt; } 3>&2 2>/dev/null'
  if ((BASH_VERSINFO[0] > 5 || BASH_VERSINFO[0] == 5 && BASH_VERSINFO[1] > 0)); then
    case "${PROMPT_COMMAND[*]-}" in
      *__wharf_prompt*) ;;
      *) PROMPT_COMMAND[${#PROMPT_COMMAND[@]} > 0 ? ${#PROMPT_COMMAND[@]} : 1]=$hook ;;
    esac
  else
    case ${PROMPT_COMMAND-} in
      *__wharf_prompt*) ;;
      *) PROMPT_COMMAND=$'__wharf_saved=$?\n'${PROMPT_COMMAND:+$PROMPT_COMMAND$'\n'}$hook ;;
    esac
  fi
  case $- in *e*) return 0 ;; esac
  return "$status"
}
