"""Which mounts of the host a container's view of it needs, and which control groups there are, from texts like mountinfo."""

from netlib.runtime.cgroups import hierarchies
from netlib.runtime.mounts import overlay_options, separate_mounts

HOST = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys rw - sysfs sysfs rw
25 24 0:23 / /sys/kernel/debug rw - debugfs debugfs rw
26 22 0:6 / /dev rw - devtmpfs devtmpfs rw
27 26 0:24 / /dev/shm rw - tmpfs tmpfs rw
28 22 0:25 / /run rw - tmpfs tmpfs rw
29 28 0:25 /netns /run/netns rw shared:1 - tmpfs tmpfs rw
30 22 8:2 / /home/ann/my\\040disk rw - xfs /dev/sdb rw
31 22 8:1 / /home rw - ext4 /dev/sda rw
32 22 0:30 / /tmp rw - tmpfs tmpfs rw
33 22 0:31 / /var/lib/netlib rw - tmpfs tmpfs rw
34 33 0:32 / /var/lib/netlib/containers/x/root rw - overlay overlay rw
35 22 0:33 / /var/lib/netlibrary rw - ext4 /dev/sdc rw
36 31 0:34 / /home rw - ext4 /dev/sdd rw
"""


def test_separate_folders_are_bound_parents_first() -> None:
    readonly, temporary = separate_mounts(HOST, ["/var/lib/netlib"])
    assert readonly == ["/home", "/home/ann/my disk", "/var/lib/netlibrary"]
    assert temporary == ["/tmp"]


def test_overlay_options_survive_odd_names() -> None:
    options = overlay_options("/a:b,c\\d", "/u", "/w")
    assert options == "lowerdir=/a\\:b\\,c\\\\d,upperdir=/u,workdir=/w,redirect_dir=off"


def test_hierarchies_of_a_hybrid_host() -> None:
    text = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
34 31 0:31 / /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
36 31 0:32 / /mnt/again rw - cgroup2 cgroup2 rw
"""
    assert hierarchies(text) == {
        "cpu,cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "freezer": "/sys/fs/cgroup/freezer",
        "unified": "/sys/fs/cgroup/unified",
    }


def test_hierarchy_of_a_host_with_only_v2() -> None:
    assert hierarchies("35 31 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw") == {"": "/sys/fs/cgroup"}
    assert hierarchies("22 1 254:0 / / rw - ext4 /dev/vda rw") == {}
