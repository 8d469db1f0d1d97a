package pty

import (
	"os"

	"golang.org/x/sys/unix"
)

// Modes is a terminal's line discipline as a value: take it with GetModes, change it, put it back with SetModes. The
// zero value must not be set.
type Modes struct {
	termios unix.Termios
}

// GetModes returns the terminal's modes, asked of either side.
func GetModes(f *os.File) (m Modes, err error) {
	err = control(f, "get modes", func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil {
			m.termios = *t
		}
		return err
	})
	return m, err
}

// SetModes sets the modes at once: output that waits is neither awaited nor lost, input that was typed ahead is kept.
func SetModes(f *os.File, m Modes) error {
	return control(f, "set modes", func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETS, &m.termios) })
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := GetModes(f)
	return err == nil
}

// Echo reports whether the terminal shows what is typed.
func (m Modes) Echo() bool { return m.termios.Lflag&unix.ECHO != 0 }

// Canonical reports whether the terminal gathers lines and lets them be edited.
func (m Modes) Canonical() bool { return m.termios.Lflag&unix.ICANON != 0 }

// Signals reports whether keys such as Ctrl-C send signals.
func (m Modes) Signals() bool { return m.termios.Lflag&unix.ISIG != 0 }

// WithEcho returns the modes with echo on or off.
func (m Modes) WithEcho(on bool) Modes {
	const bits = unix.ECHO | unix.ECHONL
	m.termios.Lflag &^= bits
	if on {
		m.termios.Lflag |= unix.ECHO
	}
	return m
}

// Raw returns modes in which every byte arrives as it was typed and leaves as it was written: termios(3), cfmakeraw.
func (m Modes) Raw() Modes {
	t := &m.termios
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return m
}

// Keys returns modes for a program that edits lines itself: keys arrive one by one, unechoed and without signals, and
// output is processed as usual ("\n" starts a new line).
func (m Modes) Keys() Modes {
	t := &m.termios
	t.Iflag &^= unix.IXON | unix.ISTRIP | unix.INLCR | unix.IGNCR
	t.Iflag |= unix.ICRNL
	t.Oflag |= unix.OPOST | unix.ONLCR
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return m
}

// Sane returns the modes that a person at a shell expects, whatever a program left behind: lines, echo, signals, UTF-8
// and the usual keys.
func (m Modes) Sane() Modes {
	t := &m.termios
	t.Iflag = unix.BRKINT | unix.ICRNL | unix.IXON | unix.IMAXBEL | unix.IUTF8
	t.Oflag = unix.OPOST | unix.ONLCR
	t.Cflag = t.Cflag&unix.CBAUD | unix.CS8 | unix.CREAD
	t.Lflag = unix.ISIG | unix.ICANON | unix.ECHO | unix.ECHOE | unix.ECHOK | unix.ECHOCTL | unix.ECHOKE | unix.IEXTEN
	keys := [...]struct{ index, key byte }{
		{unix.VINTR, 'C' - '@'}, {unix.VQUIT, '\\' - '@'}, {unix.VERASE, 0x7f}, {unix.VKILL, 'U' - '@'},
		{unix.VEOF, 'D' - '@'}, {unix.VTIME, 0}, {unix.VMIN, 1}, {unix.VSWTC, 0}, {unix.VSTART, 'Q' - '@'},
		{unix.VSTOP, 'S' - '@'}, {unix.VSUSP, 'Z' - '@'}, {unix.VEOL, 0}, {unix.VREPRINT, 'R' - '@'},
		{unix.VDISCARD, 'O' - '@'}, {unix.VWERASE, 'W' - '@'}, {unix.VLNEXT, 'V' - '@'}, {unix.VEOL2, 0},
	}
	for _, k := range keys {
		t.Cc[k.index] = k.key
	}
	return m
}

// Discard throws away what was typed and not read yet, asked of the slave side.
func Discard(f *os.File) error {
	return control(f, "discard input", func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) })
}
