# What a session's shell reads (as $ENV) where the image has no bash. Only the prompt can carry a mark here.
PS2=''
__wharf_count=0
PS1="$(printf '\033]7777;%s;B\037' "$WHARF_NONCE")"'$$:$((__wharf_count=__wharf_count+1))'"$(printf '\037')"'$?'"$(printf '\037\037\037\037')"'$PWD'"$(printf '\037\007')"
