# Becomes what the first process of a container is, and executes the rest of the arguments. The first argument names what the
# container refuses: `default`, as the default seccomp profile of container engines does without CAP_SYS_ADMIN, or
# `hostname`, where user namespaces are allowed but setting a name is not.
use strict;
my $kind = shift;
my %refused = (
    hostname => [170, 171],
    # unshare mount umount2 setns pivot_root sethostname setdomainname open_tree move_mount mount_setattr fsopen fsconfig
    # fsmount fspick keyctl add_key request_key bpf perf_event_open quotactl syslog fanotify_init userfaultfd
    default => [272, 165, 166, 308, 155, 170, 171, 428, 429, 442, 430 .. 433, 250, 248, 249, 321, 298, 179, 103, 300, 323],
);
my ($load, $equal, $any, $give) = (0x20, 0x15, 0x45, 0x06);
my ($allow, $refuse, $unknown) = (0x7fff0000, 0x00050001, 0x00050026);
my @filter = ([$load, 0, 0, 0]);
push @filter, [$equal, 0, 1, $_], [$give, 0, 0, $refuse] for @{$refused{$kind}};
# clone3 is unknown, clone with a new namespace refused.
push @filter, [$equal, 0, 1, 435], [$give, 0, 0, $unknown], [$equal, 0, 3, 56], [$load, 0, 0, 16],
    [$any, 0, 1, 0x7e020000], [$give, 0, 0, $refuse] if $kind eq 'default';
push @filter, [$give, 0, 0, $allow];
my $code = join '', map { pack 'SCCL', @$_ } @filter;
my $program = pack 'Sx6P', scalar @filter, $code;
# prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program): we may, and do not give up privileges for it.
syscall(157, 22, 2, $program) == 0 or die "seccomp: $!";
exec @ARGV or die "$ARGV[0]: $!";
