#!/bin/sh
# Before dpkg puts a file in the place of another it gives that another name. The machine's files are nobody's here, and what
# is nobody's gets no other name: those of packages that are to be replaced are made root's first.
case $DPKG_HOOK_ACTION in
    install | unpack) ;;
    *) exit 0 ;;
esac
tr '\0' '\n' <"/proc/$1/cmdline" | while read -r argument; do
    if [ -d "$argument" ]; then
        find "$argument/" -name '*.deb'
    elif [ -f "$argument" ]; then
        echo "$argument"
    fi
done | while read -r archive; do
    dpkg-deb --field "$archive" Package 2>/dev/null
done | sort -u | xargs -r dpkg-query --listfiles 2>/dev/null | while read -r file; do
    if [ -f "$file" ] && [ ! -L "$file" ] && [ ! -O "$file" ]; then
        cp --preserve=mode,timestamps "$file" "$file.wharf-new" && mv -f "$file.wharf-new" "$file"
    fi
done
