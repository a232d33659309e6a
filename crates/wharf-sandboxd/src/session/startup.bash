# What every session's bash reads in place of ~/.bashrc. It reads that first, then makes bash say, in escape
# sequences that no terminal shows, when a command starts (PS0) and when the shell waits for input (PS1);
# `transcript.rs` reads them. What is exported goes on in `exec bash` and in nested shells.

if [[ -f ~/.bashrc && -r ~/.bashrc ]]; then
  . ~/.bashrc
fi

# Runs after the user's own PROMPT_COMMAND, which may have set PS1 anew. Typed at a prompt that has lost its
# marks, it brings them back. The exit code stays as it was, but never ends a `set -e` shell.
__wharf_prompt() {
  local status=$? rest=${PATH-}: directory jobs='\j'
  __wharf_python= __wharf_count=${__wharf_count:-0}
  while [[ $rest ]]; do
    directory=${rest%%:*} rest=${rest#*:}
    if [[ -f $directory/python && -x $directory/python ]]; then
      __wharf_python=$directory/python
      break
    fi
  done
  # As long as a process lives: what `kill` has just ended is then told of at this prompt, not at the one after.
  if [[ ${jobs@P} != 0 ]]; then : "$(:)"; fi
  case ${PROMPT_COMMAND-} in
    *__wharf_prompt*) ;;
    *) PROMPT_COMMAND="${PROMPT_COMMAND:+$PROMPT_COMMAND
}{ __wharf_prompt; } 2>/dev/null" ;;
  esac
  if [[ ${WHARF_PLAIN_PROMPT-} ]]; then PS1='' PS2=''; fi
  case ${PS0-} in
    *'${WHARF_NONCE}'*) ;;
    *) PS0=${PS0-}'\e]7777;${WHARF_NONCE};C\a' ;;
  esac
  case ${PS2-} in
    *'${WHARF_NONCE}'*) ;;
    *) PS2='\[\e]7777;${WHARF_NONCE};P\a\]'${PS2-} ;;
  esac
  # The count grows only when a prompt is made, not when readline paints it again.
  case ${PS1-} in
    *'${WHARF_NONCE}'*) ;;
    *) PS1='\[\e]7777;${WHARF_NONCE};B\037$$:$((__wharf_count+=1))\037$?\037${!-}\037$EUID\037\h\037${PWD@Q}\037${__wharf_python@Q}\a\]'${PS1-} ;;
  esac
  case $- in *e*) return 0 ;; esac
  return "$status"
}

export -f __wharf_prompt
export PROMPT_COMMAND
__wharf_prompt
bind 'set enable-bracketed-paste on' 2>/dev/null
