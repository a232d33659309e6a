# What a session's shell reads (as $ENV) where the image has no bash. There is no PS0 here: every command is typed
# behind a call of this, which says that it starts and leaves $? as it was.
unset ENV
__wharf_started() {
  __wharf_status=$?
  printf '\033]7777;@NONCE@;C\037%s\007' "$__wharf_count" >/dev/tty
  return "$__wharf_status"
}
__wharf_again() { return "$__wharf_status"; }
PS2=''
__wharf_count=0
PS1="$(printf '\033]7777;@NONCE@;B\037')"'$((__wharf_count=__wharf_count+1))'"$(printf '\0371\037')"'$?'"$(printf '\037\037\037\037')"'$PWD'"$(printf '\037\007')"
