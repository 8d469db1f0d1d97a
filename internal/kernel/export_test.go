package kernel

// ParseRelease is parseRelease, for its test.
var ParseRelease = parseRelease
