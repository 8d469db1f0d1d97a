# Everything here is one command; the targets are for fingers, not for CI (that is .ci/run).
.PHONY: build test race proto lint ci

build:
	go build -trimpath -o sallyport ./cmd/sallyport

test:
	go test ./...

race:
	GORACE=atexit_sleep_ms=0 go test -race ./...

proto:
	go -C tools run ./protogen -root ..

lint:
	go vet ./...
	go -C tools build -o $${TMPDIR:-/tmp}/sallyport-staticcheck honnef.co/go/tools/cmd/staticcheck
	$${TMPDIR:-/tmp}/sallyport-staticcheck ./...

ci:
	bash .ci/run
